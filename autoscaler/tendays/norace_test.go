// SPDX-License-Identifier: MIT

//go:build !race

package tendays_test

const raced = false
