// SPDX-License-Identifier: MIT

// Package install makes the agent a service of its host: launchd's on a Mac, systemd's on
// Linux. It writes the service's description, checks it, and has the service manager take it
// over. It installs no program and touches no VM: those outlive the agent, whoever ends it.
//
// What launchctl does with these commands is taken from its manual and was not yet verified
// on a Mac.
package install
