// SPDX-License-Identifier: MIT

package main

import (
	"testing"

	"github.com/alecthomas/kong"

	"github.com/minifleet/minifleet/docs/page"
)

// TestConfigurationPage holds docs/configuration.md to the flags.
func TestConfigurationPage(t *testing.T) {
	parser, err := kong.New(&flags{}, kong.Name("minifleet-guest"), kong.Vars{"version": ""})
	if err != nil {
		t.Fatal(err)
	}
	if err := page.Flags("flags of minifleet-guest", parser.Model).Keep("../../docs/configuration.md"); err != nil {
		t.Error(err)
	}
}
