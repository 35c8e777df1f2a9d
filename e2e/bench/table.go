// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// bencher collects the table.
type bencher struct {
	options
	out  io.Writer
	rows []row
}

// row is one line of the table. A row without a target is there to be read.
type row struct{ figure, target, seen, verdict string }

func newBencher(o options, out io.Writer) (*bencher, error) {
	temp := o.dir
	dir, err := os.MkdirTemp(temp, "b") // short: sockets lie below it
	if err != nil {
		return nil, err
	}
	for _, path := range []*string{&o.programs, &o.payload, &o.image, &o.profiles} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"minifleet", "minifleet-agent", "minifleet-vmm", "minifleet-guest"} {
		if _, err := os.Stat(filepath.Join(o.programs, name)); err != nil {
			return nil, fmt.Errorf("%w: build the programs with `make programs`, or name their folder with -programs", err)
		}
	}
	o.dir = dir
	return &bencher{options: o, out: out}, nil
}

func (b *bencher) close() {
	if b.keep {
		fmt.Fprintln(b.out, "kept:", b.dir)
		return
	}
	if err := os.RemoveAll(b.dir); err != nil {
		fmt.Fprintln(b.out, "not removed:", err)
	}
}

// header names all that the figures depend on.
func (b *bencher) header() {
	fmt.Fprintf(b.out, "time      %s\n", time.Now().UTC().Format(time.RFC3339))
	fmt.Fprintf(b.out, "commit    %s\n", firstOf(commandOutput("git", "describe", "--always", "--dirty", "--abbrev=12"), "unknown"))
	fmt.Fprintf(b.out, "go        %s %s/%s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH)
	fmt.Fprintf(b.out, "machine   %d cores of %s, %s memory\n", runtime.NumCPU(), processor(), memory())
	fmt.Fprintf(b.out, "database  SQLite, WAL, synchronous=FULL, on %s; a write of 4 KiB with fsync takes %s\n", fileSystem(b.dir), fsyncTime(b.dir))
	fmt.Fprintf(b.out, "load      %s before the start\n", load())
	if b.scale != 1 {
		fmt.Fprintf(b.out, "scale     %g: fewer jobs than the figures ask for\n", b.scale)
	}
}

// add prints a row at once and keeps it for the table.
func (b *bencher) add(r row) {
	b.rows = append(b.rows, r)
	fmt.Fprintf(b.out, "  %-44s %-20s %-60s %-8s load %s\n", r.figure, r.target, r.seen, r.verdict, load())
}

// limit adds a figure with a target.
func (b *bencher) limit(figure, target, seen string, met bool) {
	r := row{figure, target, seen, "met"}
	if !met {
		r.verdict = "NOT MET"
	}
	b.add(r)
}

// skip adds a figure that cannot be taken here, and why.
func (b *bencher) skip(figure, target, why string) {
	b.add(row{figure: figure, target: target, seen: why, verdict: "skipped"})
}

// note adds a figure to be read.
func (b *bencher) note(figure, seen string) { b.add(row{figure: figure, seen: seen}) }

func (b *bencher) summary(took time.Duration) {
	wide := [3]int{}
	for _, r := range b.rows {
		for i, s := range []string{r.figure, r.target, r.seen} {
			wide[i] = max(wide[i], len([]rune(s)))
		}
	}
	missed := 0
	fmt.Fprintf(b.out, "\n%-*s  %-*s  %-*s  verdict\n", wide[0], "figure", wide[1], "target", wide[2], "seen")
	for _, r := range b.rows {
		fmt.Fprintf(b.out, "%-*s  %-*s  %-*s  %s\n", wide[0], r.figure, wide[1], r.target, wide[2], r.seen, r.verdict)
		if r.verdict == "NOT MET" {
			missed++
		}
	}
	fmt.Fprintf(b.out, "\n%d figures missed; %s; load %s\n", missed, took.Round(time.Second), load())
}

// times are durations that were measured.
type times []time.Duration

func (t times) at(part float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	slices.Sort(t)
	return t[min(len(t)-1, int(part*float64(len(t))))]
}

func (t times) String() string {
	return fmt.Sprintf("p50 %s, p99 %s, max %s, n %d", short(t.at(0.5)), short(t.at(0.99)), short(t.at(1)), len(t))
}

func short(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/1e6)
}

// inOrder pairs the k-th start with the k-th end. Where any job may go to any runner
// this is what the order of the queue says; any other pairing has the same mean, and no
// other has a smaller maximum.
func inOrder(starts, ends []time.Time) times {
	starts, ends = slices.Clone(starts), slices.Clone(ends)
	slices.SortFunc(starts, time.Time.Compare)
	slices.SortFunc(ends, time.Time.Compare)
	var t times
	for i := range min(len(starts), len(ends)) {
		t = append(t, ends[i].Sub(starts[i]))
	}
	return t
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func firstOf(s, otherwise string) string {
	if s = strings.TrimSpace(s); s != "" {
		return s
	}
	return otherwise
}

func commandOutput(name string, args ...string) string {
	out, _ := exec.Command(name, args...).Output() //nolint:noctx // short, and its failure is no answer
	return string(out)
}

// field returns the value of a line "name : value" of a file.
func field(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func processor() string {
	return firstOf(field("/proc/cpuinfo", "model name"), firstOf(commandOutput("sysctl", "-n", "machdep.cpu.brand_string"), runtime.GOARCH))
}

func memory() string {
	var kib int64
	if n, _ := fmt.Sscanf(field("/proc/meminfo", "MemTotal"), "%d kB", &kib); n == 1 {
		return fmt.Sprintf("%.0f GiB", float64(kib)/(1<<20))
	}
	return "unknown"
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(b))[0]
}

// fileSystem names the file system of a folder and its device.
func fileSystem(dir string) string {
	lines := strings.Split(strings.TrimSpace(commandOutput("df", "-PT", dir)), "\n")
	if words := strings.Fields(lines[len(lines)-1]); len(lines) > 1 && len(words) > 1 {
		return words[1] + " (" + words[0] + ")"
	}
	return "an unknown file system"
}

// fileSystemType is its kind alone.
func fileSystemType(dir string) string {
	kind, _, _ := strings.Cut(fileSystem(dir), " (")
	return kind
}

// fsyncTime is the least that one transaction of its own costs there.
func fsyncTime(dir string) string {
	f, err := os.CreateTemp(dir, "fsync")
	if err != nil {
		return "unknown"
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var t times
	for range 50 {
		began := time.Now()
		if _, err := f.Write(make([]byte, 4096)); err != nil || f.Sync() != nil {
			return "unknown"
		}
		t = append(t, time.Since(began))
	}
	return "p50 " + short(t.at(0.5)) + ", p99 " + short(t.at(0.99))
}
