// SPDX-License-Identifier: MIT

//go:build !race

package autoscaler_test

const raced = false
