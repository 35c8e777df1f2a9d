// SPDX-License-Identifier: MIT

package main

import (
	"testing"

	"github.com/alecthomas/kong"

	"github.com/minifleet/minifleet/docs/page"
)

// TestConfigurationPage holds docs/configuration.md to the flags.
func TestConfigurationPage(t *testing.T) {
	parser, err := kong.New(&commands{}, kong.Name("minifleet-vmm"))
	if err != nil {
		t.Fatal(err)
	}
	if err := page.Flags("flags of minifleet-vmm", parser.Model).Keep("../../docs/configuration.md"); err != nil {
		t.Error(err)
	}
}
