// SPDX-License-Identifier: MIT

// Package archives keeps archives from the network on the host, each named by the digest
// of its content: what was fetched once and proved right is not fetched again. It knows
// nothing of what is in them, and unpacks none.
//
// In its folder an archive is SHA256.tar.gz, and one that is being fetched, or whose
// fetching was cut short, SHA256.part: a part becomes an archive by a rename, when all of
// it is there, its digest is right and it is on the disk. What a crash leaves is a part,
// which the next fetch goes on with. The archives and parts used last are kept.
package archives
