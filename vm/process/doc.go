// SPDX-License-Identifier: MIT

// Package process is the backend that runs the guest agent as an ordinary process in
// the bundle's root folder. It exists for development and tests, and it isolates
// nothing: the guest can do whatever the user can that runs the vmm. What it does keep
// is the contract's promise that nothing is left after the end; on macOS, where a
// process that leaves its process group cannot be traced, only within that group.
// It knows the guest agent by its path and flags alone.
package process
