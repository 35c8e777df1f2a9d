// SPDX-License-Identifier: MIT

// Package vz is the backend on Apple's Virtualization.framework: macOS and Linux guests
// on a Mac. What only a Mac compiles is thin: it turns a plan into the framework's
// objects and passes calls on (files *_darwin.go). All decisions are made in files that
// every system builds and tests: the plan, the identity of a machine, the order of calls,
// what an error of the framework means, and what to do about a descriptor that the
// bindings close twice. Nothing of it has been seen on hardware yet.
package vz
