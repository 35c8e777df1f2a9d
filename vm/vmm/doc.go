// SPDX-License-Identifier: MIT

// Package vmm is what runs inside minifleet-vmm: it owns exactly one machine for its
// whole life. It holds the bundle's lock, keeps its status, serves its two sockets and
// drives a backend through the contract of package vm. It knows no backend by itself,
// and it never clones, scans or deletes a bundle: that is the agent's side, package vm.
package vmm
