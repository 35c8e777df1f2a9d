// SPDX-License-Identifier: MIT

package dev

import (
	"testing"

	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }
