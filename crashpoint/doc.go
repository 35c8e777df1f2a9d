// SPDX-License-Identifier: MIT

// Package crashpoint names the moments between an effect and its record, and
// between a record and its effect, at which each program must be able to die. In a
// build with the tag crashpoints a program that reaches an armed point is killed on
// the spot, so that a test finds out what is left; in every other build a point is
// nothing at all. It decides nothing and knows no other package.
package crashpoint

// Point is one such moment.
type Point int
