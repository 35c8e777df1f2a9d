// SPDX-License-Identifier: MIT

// Package states keeps the saved states of a host's machines. A state is the memory of a
// machine together with the disks as they were at that moment: one unit, made aside,
// renamed in whole and deleted in whole, since one without the other is worthless and with
// other disks destructive. It belongs to one slot of the host, whose identity its machine
// had, and to a Key. It is made before its guest can have held a secret: who calls Save
// answers for that.
//
// What a crash leaves half made is deleted by the next Open, what is whole is kept. All
// states together stay within a limit; who was used longest ago goes first. A state is
// given to one user at a time, and none is deleted under its user's feet, nor under a vmm
// that an earlier agent left (vm.HoldSaved).
package states
