// SPDX-License-Identifier: MIT

package layout_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/vm"
)

var (
	model = []byte("bplist00 a hardware model")
	b64   = base64.StdEncoding.EncodeToString(model)
)

// tart is a configuration with every key that tart writes.
func tart(changes ...string) string {
	text := `{"version":1,"os":"darwin","arch":"arm64","ecid":"` + base64.StdEncoding.EncodeToString([]byte("bplist00 ecid")) + `","hardwareModel":"` + b64 + `",
		"cpuCountMin":2,"cpuCount":4,"memorySizeMin":4294967297,"memorySize":8589934592,"macAddress":"5e:00:00:00:00:01",
		"display":{"width":1024,"height":768,"unit":"pt"},"displayRefit":true,"diskFormat":"raw"}`
	return strings.NewReplacer(changes...).Replace(text)
}

var (
	ours = map[string]string{
		"image.json": `{"schema":1,"name":"dev","guest_os":"linux","arch":"amd64","description":"for tests","min_cpus":2,"min_memory_mib":512}`,
		"disk.img":   "disk", "kernel": "kernel", "root/bin/tool": "#!/bin/sh\n",
	}
	tarts = map[string]string{
		"config.json": tart(), "disk.img": "disk", "nvram.bin": "nvram",
		"manifest.json": "{}", ".explicitly-pulled": "", // no part of the image
	}
	shoes = map[string]string{
		"HardwareModel.json": `{"hardwareModel":"` + b64 + `"}`, "Disk.img": "disk", "AuxiliaryStorage": "nvram",
		"TemplateMetadata.json": "{}", "README.md": "", "MachineIdentifier.json": "{}",
	}
	bundle = map[string]string{
		"image.json": `{"schema":1,"name":"dev","guest_os":"darwin","min_host_os":"14.4","display":{"width":1920,"height":1200,"ppi":80}}`,
		"disk.img":   "disk", "nvram.bin": "nvram", "hardware-model.bin": string(model),
		"spec.json": "{}", "lock": "", "vmm.json": "{}", "writer.json.1": "", "status.jsonl": "", "vmm.log": "", "qemu.log": "", "machine-id.bin": "id",
	}
)

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		mode := os.FileMode(0o600)
		if text == "#!/bin/sh\n" {
			mode = 0o755
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// listing is what a template's files hold, by path.
func listing(t *testing.T, got *layout.Template) []string {
	t.Helper()
	var all []string
	for _, f := range got.Files {
		content := f.Content
		if f.Source != "" {
			b, err := os.ReadFile(f.Source)
			if err != nil || f.Content != nil {
				t.Errorf("%+v: %v", f, err)
			}
			content = b
		}
		all = append(all, fmt.Sprintf("%s %04o %s", f.Path, f.Mode, content))
	}
	return all
}

func TestOpen(t *testing.T) {
	t.Parallel()
	foreign := []string{"disk.img 0644 disk", "hardware-model.bin 0644 " + string(model), "nvram.bin 0644 nvram"}
	for name, tt := range map[string]struct {
		files map[string]string
		want  manifest.Manifest
		list  []string
	}{
		"ours": {
			ours,
			manifest.Manifest{Schema: 1, GuestOS: "linux", Arch: "amd64", Description: "for tests", MinCPUs: 2, MinMemoryMiB: 512},
			[]string{"disk.img 0600 disk", "kernel 0600 kernel", "root/bin/tool 0755 #!/bin/sh\n"},
		},
		"ours, its hardware model in image.json": {
			map[string]string{"image.json": `{"schema":1,"name":"mac","guest_os":"darwin","hardware_model":"` + b64 + `"}`, "disk.img": "disk"},
			manifest.Manifest{Schema: 1, GuestOS: "darwin", HardwareModel: model},
			[]string{"disk.img 0600 disk", "hardware-model.bin 0644 " + string(model)},
		},
		"a bundle": {
			bundle,
			manifest.Manifest{Schema: 1, GuestOS: "darwin", MinHostOS: "14.4", Display: &manifest.Display{Width: 1920, Height: 1200, PPI: 80}, HardwareModel: model},
			[]string{"disk.img 0600 disk", "hardware-model.bin 0600 " + string(model), "nvram.bin 0600 nvram"},
		},
		"tart": {
			tarts,
			manifest.Manifest{Schema: 1, GuestOS: "darwin", Arch: "arm64", MinCPUs: 2, MinMemoryMiB: 4097, Display: &manifest.Display{Width: 1024, Height: 768}, HardwareModel: model},
			foreign,
		},
		"an old one of tart": {
			with(tarts, "config.json", `{"version":1,"hardwareModel":"`+b64+`"}`),
			manifest.Manifest{Schema: 1, GuestOS: "darwin", Arch: "arm64", HardwareModel: model},
			foreign,
		},
		"Linux of tart": {
			with(tarts, "config.json", `{"version":1,"os":"linux","arch":"arm64"}`),
			manifest.Manifest{Schema: 1, GuestOS: "linux", Arch: "arm64"},
			[]string{"disk.img 0644 disk", "nvram.bin 0644 nvram"},
		},
		"shoes-vz": {
			shoes,
			manifest.Manifest{Schema: 1, GuestOS: "darwin", Arch: "arm64", HardwareModel: model},
			foreign,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := folder(t, tt.files)
			link := filepath.Join(t.TempDir(), "link") // the folder itself may be one
			if err := os.Symlink(dir, link); err != nil {
				t.Fatal(err)
			}
			got, err := layout.Open(link)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got.Manifest); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.list, listing(t, got)); diff != "" {
				t.Error(diff)
			}
			if real, err := filepath.EvalSymlinks(dir); err != nil || got.Dir != real {
				t.Errorf("its folder is %s, %v, want %s", got.Dir, err, real)
			}
		})
	}
}

// with returns files with one of them changed, or without it where text is "".
func with(files map[string]string, name, text string) map[string]string {
	changed := map[string]string{}
	for n, v := range files {
		changed[n] = v
	}
	changed[name] = text
	if text == "" {
		delete(changed, name)
	}
	return changed
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		files  map[string]string
		change func(dir string) error
		want   string
	}{
		"nothing":                   {map[string]string{"disk.img": "disk"}, nil, "neither image.json"},
		"image.json of a later one": {with(ours, "image.json", `{"schema":2}`), nil, "schema 2"},
		"image.json alone":          {map[string]string{"image.json": ours["image.json"]}, nil, "nothing beside"},
		"image.json a link":         {ours, swap("image.json", link("/etc/passwd")), "image.json is a link"},
		"image.json a pipe":         {ours, swap("image.json", pipe), "no regular file"},
		"image.json huge":           {with(ours, "image.json", strings.Repeat(" ", 1<<20)), nil, "larger than"},
		"link inside":               {ours, swap("root/bin/tool", link("/bin/sh")), "root/bin/tool is a link"},
		"pipe inside":               {ours, swap("root/bin/tool", pipe), "root/bin/tool is neither"},
		"empty folder":              {ours, swap("root/bin/tool", nil), "root/bin is empty"},
		"name that is no text":      {ours, func(dir string) error { return os.WriteFile(filepath.Join(dir, "a\xff"), nil, 0o600) }, "printable ASCII"},
		"two hardware models": {
			with(bundle, "image.json", `{"schema":1,"name":"a","guest_os":"darwin","hardware_model":"`+base64.StdEncoding.EncodeToString([]byte("bplist00 other"))+`"}`),
			nil, "is another than",
		},
		"hidden file":                     {with(ours, ".metadata_never_index", "x"), nil, "begins with a dot"},
		"hardware model of a Linux guest": {with(bundle, "image.json", `{"schema":1,"name":"a","guest_os":"linux"}`), nil, "guest_os is linux"},
		"hardware model that is none":     {with(bundle, "hardware-model.bin", "model"), nil, "hardware-model.bin: it is no binary property list"},
		"hardware model that is a link":   {bundle, swap("hardware-model.bin", link("disk.img")), "hardware-model.bin is a link"},
		"bundle of an unknown image":      {with(bundle, "image.json", ""), nil, "no image.json of its image"},
		"bundle with a link as its lock":  {bundle, swap("lock", link("disk.img")), "symbolic links"},

		"tart without a disk":        {with(tarts, "disk.img", ""), nil, "incomplete VM of tart: disk.img is missing"},
		"tart without nvram":         {with(tarts, "nvram.bin", ""), nil, "nvram.bin is missing"},
		"tart's disk a link":         {tarts, swap("disk.img", link("nvram.bin")), "disk.img is no regular file"},
		"tart's disk empty":          {tarts, func(dir string) error { return os.Truncate(filepath.Join(dir, "disk.img"), 0) }, "disk.img is empty"},
		"tart's config a link":       {tarts, swap("config.json", link("nvram.bin")), "config.json is a link"},
		"tart's config huge":         {with(tarts, "config.json", strings.Repeat(" ", 1<<20)), nil, "larger than"},
		"tart suspended":             {with(tarts, "state.vzvmsave", "state"), nil, "suspended"},
		"tart, sparse format":        {with(tarts, "config.json", tart(`"raw"`, `"asif"`)), nil, `format "asif"`},
		"tart, other version":        {with(tarts, "config.json", tart(`"version":1`, `"version":2`)), nil, "version is 2"},
		"tart, no version":           {with(tarts, "config.json", tart(`"version":1,`, "")), nil, "version is 0"},
		"tart, no hardware model":    {with(tarts, "config.json", tart(b64, "")), nil, "hardwareModel is missing"},
		"tart, no base64":            {with(tarts, "config.json", tart(b64, "%%%")), nil, "illegal base64"},
		"tart, other hardware model": {with(tarts, "config.json", tart(b64, "AAAA")), nil, "no binary property list"},
		"tart, other system":         {with(tarts, "config.json", tart(`"darwin"`, `"windows"`)), nil, "guest_os"},
		"tart, other processor":      {with(tarts, "config.json", tart(`"arm64"`, `"m68k"`)), nil, "arch"},
		"tart, absurd memory":        {with(tarts, "config.json", tart("4294967297", "9223372036854775807")), nil, "memorySizeMin"},
		"tart, negative memory":      {with(tarts, "config.json", tart("4294967297", "-1")), nil, "memorySizeMin"},
		"tart, negative processors":  {with(tarts, "config.json", tart(`"cpuCountMin":2`, `"cpuCountMin":-2`)), nil, "min_cpus"},
		"tart, absurd screen":        {with(tarts, "config.json", tart("1024", "0")), nil, "display"},
		"tart, more behind it":       {with(tarts, "config.json", tart()+"{}"), nil, "something follows"},

		"shoes-vz without a model":   {with(shoes, "HardwareModel.json", ""), nil, "incomplete template of shoes-vz: HardwareModel.json is missing"},
		"shoes-vz without a disk":    {with(shoes, "Disk.img", ""), nil, "Disk.img is missing"},
		"shoes-vz without a storage": {with(shoes, "AuxiliaryStorage", ""), nil, "AuxiliaryStorage is missing"},
		"shoes-vz, empty model":      {with(shoes, "HardwareModel.json", "{}"), nil, "hardwareModel is missing"},
		"shoes-vz, other model":      {with(shoes, "HardwareModel.json", `{"hardwareModel":"AAAA"}`), nil, "no binary property list"},
		"shoes-vz, more behind it":   {with(shoes, "HardwareModel.json", shoes["HardwareModel.json"]+"{}"), nil, "something follows"},
		"shoes-vz, saved":            {with(shoes, "State.save", "state"), nil, "saved state"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := folder(t, tt.files)
			if tt.change != nil {
				if err := tt.change(dir); err != nil {
					t.Fatal(err)
				}
			}
			got, err := layout.Open(dir)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%v, %v, want %q", got, err, tt.want)
			}
		})
	}
	for _, dir := range []string{"", "/no/such/folder", "/etc/passwd"} {
		if got, err := layout.Open(dir); err == nil {
			t.Errorf("%q: %v", dir, got)
		}
	}
}

// swap puts something else in the place of a file, or nothing.
func swap(name string, with func(path string) error) func(dir string) error {
	return func(dir string) error {
		path := filepath.Join(dir, name)
		err := os.Remove(path)
		if with != nil && err == nil {
			err = with(path)
		}
		return err
	}
}

func link(target string) func(string) error {
	return func(path string) error { return os.Symlink(target, path) }
}

func pipe(path string) error { return syscall.Mkfifo(path, 0o600) }

// TestOpenRefusesABundleInUse is alone: a program that another test starts in the moment of
// the Close would have the lock until it is one.
func TestOpenRefusesABundleInUse(t *testing.T) {
	dir := folder(t, bundle)
	lock, err := vm.AcquireLock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := layout.Open(dir); !errors.Is(err, vm.ErrLocked) {
		t.Errorf("%v, %v", got, err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := layout.Open(dir); err != nil {
		t.Error(err)
	}
}

const lockVariable = "LAYOUT_TEST_LOCK"

// TestHoldTartsLock is the process that has one of tart's VMs running, when a test starts
// it as such: these locks exist between processes only.
func TestHoldTartsLock(t *testing.T) {
	path := os.Getenv(lockVariable)
	if path == "" {
		t.Skip("this test is a part of TestOpenRefusesARunningVMOfTart")
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	fmt.Println("locked")
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the other side closes it
}

func TestOpenRefusesARunningVMOfTart(t *testing.T) {
	t.Parallel()
	dir := folder(t, tarts)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHoldTartsLock$")
	cmd.Env = append(os.Environ(), lockVariable+"="+filepath.Join(dir, "config.json"))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len("locked"))
	if n, err := stdout.Read(b); err != nil || !bytes.HasPrefix(b[:n], []byte("locked")) {
		t.Errorf("%q, %v", b[:n], err)
	}
	if got, err := layout.Open(dir); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("runs (process %d)", cmd.Process.Pid)) {
		t.Errorf("%v, %v", got, err)
	}
	if err := errors.Join(stdin.Close(), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	if _, err := layout.Open(dir); err != nil {
		t.Error(err)
	}
}

func TestParseImageRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`"guest_os":"darwin","hardware_model":"AAAA"`: "no binary property list",
		`"min_cpus":-1`:                   "min_cpus is -1",
		`"min_memory_mib":99999999999`:    "min_memory_mib",
		`"arch":"vax"`:                    "arm64 or amd64",
		`"min_host_os":"Sonoma"`:          "a version like",
		`"min_host_os":"14.4.1.2"`:        "a version like",
		`"display":{"width":1}`:           "display is 1 x 0",
		`"display":{"w":1}`:               "unknown field",
		`"display":{"ppi":-1}`:            "display",
		`"hardware_model":"AAAA"`:         "macOS guests only",
		`"hardware_model":"` + b64 + `"`:  "macOS guests only",
		`"hardware_model":"` + b64 + `e"`: "illegal base64",
	} {
		m, err := layout.ParseImage([]byte(`{"schema":1,"name":"a","guest_os":"linux",` + text + `}`))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v, want %q", text, m, err, want)
		}
	}
}
