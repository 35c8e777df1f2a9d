// SPDX-License-Identifier: MIT

package main

import (
	"testing"

	"github.com/alecthomas/kong"

	"github.com/minifleet/minifleet/config"
	"github.com/minifleet/minifleet/docs/page"
)

// TestConfigurationPage holds docs/configuration.md to the settings and the flags.
func TestConfigurationPage(t *testing.T) {
	parser, err := kong.New(&commands{}, kong.Name("minifleet"), kong.Vars{"version": ""})
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []page.Table{
		page.Keys("the controller's file", config.Describe[settings](envPrefix)),
		page.Flags("flags of minifleet", parser.Model),
	} {
		if err := table.Keep("../../docs/configuration.md"); err != nil {
			t.Error(err)
		}
	}
}
