// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"strings"
)

// packed is a module as the kernel's package has it, maybe compressed.
type packed struct {
	base string
	data []byte
}

// moduleName is the name that the kernel calls a module's file by.
func moduleName(base string) string {
	name, _, _ := strings.Cut(base, ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// loadOrder returns the wanted modules and all that they depend on, each after what it
// depends on. What is part of the kernel is left out.
func loadOrder(ctx context.Context, wanted []string, available map[string]packed, builtin map[string]bool) ([]module, error) {
	var order []module
	loaded := map[string]bool{}
	var load func(name, by string) error
	load = func(name, by string) error {
		if loaded[name] || builtin[name] {
			return nil
		}
		loaded[name] = true
		p, ok := available[name]
		if !ok {
			return fmt.Errorf("the kernel's package has no module %s, which %s needs", name, by)
		}
		data, err := unpack(ctx, p)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		depends, err := dependsOf(data)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, d := range depends {
			if err := load(d, name); err != nil {
				return err
			}
		}
		order = append(order, module{name: name, data: data})
		return nil
	}
	for _, name := range wanted {
		if err := load(name, "the guest"); err != nil {
			return nil, err
		}
	}
	return order, nil
}

func unpack(ctx context.Context, p packed) ([]byte, error) {
	if strings.HasSuffix(p.base, ".ko") {
		return p.data, nil
	}
	return decompress(ctx, p.data)
}

// dependsOf reads the names of the modules that a module depends on out of its section
// .modinfo, which has key=value, each ended by a zero byte.
func dependsOf(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if names, ok := bytes.CutPrefix(entry, []byte("depends=")); ok && len(names) > 0 {
			return strings.Split(strings.ReplaceAll(string(names), "-", "_"), ","), nil
		}
	}
	return nil, nil
}
