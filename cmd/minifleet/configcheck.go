// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"strings"
)

type configCommand struct {
	Check configCheck `cmd:"" help:"Read a configuration file and say what is wrong with it."`
	Keys  configList  `cmd:"" help:"List all keys with their defaults."`
}

type configCheck struct {
	File string `arg:"" type:"existingfile" help:"Configuration file (YAML)."`
}

// Run checks a file.
func (c configCheck) Run(s *surroundings) error {
	cfg, err := loadSettings(c.File, s.getenv)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(cfg.Pools))
	for _, p := range cfg.Pools {
		names = append(names, p.Name)
	}
	_, err = fmt.Fprintf(s.stdout, "%s is good: App %d at %s, pools %s\n", c.File, cfg.GitHub.AppID, cfg.GitHub.URL, strings.Join(names, ", "))
	return err
}

type configList struct{}

// Run lists the keys.
func (configList) Run(s *surroundings) error {
	_, err := fmt.Fprint(s.stdout, configKeys())
	return err
}
