// SPDX-License-Identifier: MIT

// Package agent makes the VMs of one host match what the controller wants, over
// package protocol. It owns the host's identity and state folder, one goroutine
// for each runner's whole life, the host's slots, and the three loops that speak
// with the controller: desired, report and lease. How a VM is made and how its
// guest is reached is behind Machines, which joins packages vm, imagecache and
// guest; the agent knows nothing of GitHub and decides nothing about demand.
package agent
