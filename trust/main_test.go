// SPDX-License-Identifier: MIT

package trust_test

import (
	"testing"

	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }
