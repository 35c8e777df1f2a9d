// SPDX-License-Identifier: MIT

// Package vmtest is the conformance suite that every backend of package vm passes: Run
// checks the contract of vm.Instance, call by call, against a real machine. It also has
// a small guest agent (Guest) for tests that need one which does as it is told. It is
// for tests only, and tests no vmm.
package vmtest
