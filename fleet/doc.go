// SPDX-License-Identifier: MIT

// Package fleet is the domain at the bottom: Job, Scope, Pool, Host and Runner,
// the transition tables that say how each moves, and the small values that the
// packages above hand to one another. It does no input or output, holds no
// clock and imports nothing of Minifleet but package secret.
package fleet
