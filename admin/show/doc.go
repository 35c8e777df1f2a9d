// SPDX-License-Identifier: MIT

// Package show prints what the operator API says, as aligned tables for people
// and as the API's own JSON for programs. It asks the API and renders; flags,
// configuration and exit codes belong to the command that calls it.
package show
