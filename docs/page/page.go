// SPDX-License-Identifier: MIT

// Package page keeps tables of the documents true: their rows come from the code,
// only their last column is written by people. Tests compare them; with UPDATE_DOCS=1
// they are written anew, what people wrote kept.
package page

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Table is one table of a page, between the lines "<!-- table: NAME -->" and
// "<!-- end -->".
type Table struct {
	Name    string
	Columns []string   // headings of what the code says; the first is the key
	Written string     // heading of the last column, which people write; "" if there is none
	Rows    [][]string // what the code says, in order
}

// Keep returns what is wrong with the table in the file, row by row, or, where
// UPDATE_DOCS is 1, mends all of it but cells that nobody has written yet.
func (t Table) Keep(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin, end := "<!-- table: "+t.Name+" -->\n", "<!-- end -->"
	before, rest, ok := strings.Cut(string(text), begin)
	block, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return fmt.Errorf("%s: no table between %q and %q", path, begin, end)
	}
	is := parse(block)
	want := t.lines(is)
	if os.Getenv("UPDATE_DOCS") == "1" && strings.Join(want, "") != block {
		if err := os.WriteFile(path, []byte(before+begin+strings.Join(want, "")+end+after), 0o644); err != nil {
			return err
		}
		block = strings.Join(want, "")
	}
	return t.compare(path, slices.Collect(strings.Lines(block)), want)
}

// compare says which lines are missing, stale or unfinished.
func (t Table) compare(path string, is, want []string) error {
	var errs []error
	for _, line := range want {
		if !slices.Contains(is, line) {
			errs = append(errs, fmt.Errorf("%s, table %q lacks this row: %s", path, t.Name, strings.TrimSpace(line)))
		} else if strings.HasSuffix(line, "| "+unwritten+" |\n") {
			errs = append(errs, fmt.Errorf("%s, table %q: write the last cell of this row: %s", path, t.Name, strings.TrimSpace(line)))
		}
	}
	for _, line := range is {
		if !slices.Contains(want, line) {
			errs = append(errs, fmt.Errorf("%s, table %q has this row, which the code does not know: %s", path, t.Name, strings.TrimSpace(line)))
		}
	}
	if len(errs) == 0 && !slices.Equal(is, want) {
		errs = append(errs, fmt.Errorf("%s, table %q: its rows are out of order", path, t.Name))
	}
	if len(errs) > 0 {
		errs = append(errs, errors.New("`make generate` writes the rows; what people write in the last column stays, and is yours to add"))
	}
	return errors.Join(errs...)
}

// unwritten stands in a cell that a person has yet to write.
const unwritten = "?"

// lines renders the table with what people wrote before.
func (t Table) lines(old map[string]string) []string {
	headings := slices.Clone(t.Columns)
	if t.Written != "" {
		headings = append(headings, t.Written)
	}
	out := []string{row(headings), "|" + strings.Repeat("---|", len(headings)) + "\n"}
	for _, cells := range t.Rows {
		cells = slices.Clone(cells)
		for i := range cells {
			cells[i] = strings.ReplaceAll(cells[i], "|", `\|`)
		}
		if t.Written != "" {
			text := old[cells[0]]
			if text == "" {
				text = unwritten
			}
			cells = append(cells, text)
		}
		out = append(out, row(cells))
	}
	return out
}

func row(cells []string) string { return "| " + strings.Join(cells, " | ") + " |\n" }

// parse returns the last cell of each row by the first.
func parse(block string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(block) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) < 2 {
			continue
		}
		out[strings.TrimPrefix(cells[0], "| ")] = strings.TrimSuffix(cells[len(cells)-1], " |")
	}
	return out
}
