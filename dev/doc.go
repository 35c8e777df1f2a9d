// SPDX-License-Identifier: MIT

// Package dev runs a whole site on one machine for trying Minifleet out: a
// simulated GitHub, the controller and agents, each a process of its own on
// loopback, in a folder that is removed at the end. It owns the demo too: a
// workflow whose jobs succeed, fail and are cancelled while an agent is killed, and
// the account of what was left behind. Only the simulated GitHub is pretence.
package dev
