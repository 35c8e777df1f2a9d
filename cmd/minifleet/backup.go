// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"path/filepath"

	"github.com/minifleet/minifleet/store"
)

type backupCommand struct {
	Config string `short:"c" required:"" type:"existingfile" help:"The controller's configuration file, which names the database."`
	To     string `required:"" type:"path" placeholder:"FILE" help:"New file for the copy."`
}

// Help says when it may be run.
func (backupCommand) Help() string {
	return "Writes a checked copy of the database as it is at one moment. The controller may run meanwhile and is not disturbed. " +
		"The copy holds hashes of tokens and no secrets; the configuration and its secret files are not in it."
}

// Run copies.
func (c backupCommand) Run(s *surroundings) error {
	cfg, err := loadSettings(c.Config, s.getenv)
	if err != nil {
		return err
	}
	size, err := store.Backup(s.ctx, under(filepath.Dir(c.Config), cfg.Database), c.To)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.stdout, "%s holds the whole database: %d bytes\n", c.To, size)
	return err
}
