// SPDX-License-Identifier: MIT

// Package remote reaches the guest program of a VM whose image has only SSH: it logs in,
// puts the fitting minifleet-guest in if it is not there, starts it detached from the
// session, and opens streams to its socket over the one SSH connection. The connection may
// break at any moment, and the host's agent end: the program in the VM goes on, is found
// again by its socket, and is never started a second time in one boot of the VM.
//
// The guest is hostile once its job runs: whatever it says is bounded in size and time, and
// a connection on which it keeps something open or unanswered is closed as a whole. The
// package knows nothing of what is said over the streams, nor of how a VM's address is
// found.
package remote
