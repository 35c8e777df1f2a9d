// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/minifleet/minifleet/config"
	"github.com/minifleet/minifleet/guest/remote"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/oci"
	"github.com/minifleet/minifleet/program"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
)

// envPrefix begins the variables that win over keys of the file.
const envPrefix = "MINIFLEET_AGENT"

// settings is the agent's configuration file.
type settings struct {
	Controller         string        `yaml:"controller" required:"true" help:"address of the controller: https, or http on loopback"`
	Name               string        `yaml:"name" required:"true" help:"of this host: lower-case letters, digits and dashes"`
	StateDir           string        `yaml:"state_dir" required:"true" help:"folder for identity, VMs and diagnostics; its path must be short"`
	EnrolmentToken     secret.Text   `yaml:"enrolment_token" help:"needed once, to join"`
	EnrolmentTokenFile string        `yaml:"enrolment_token_file" help:"file that holds it"`
	CAFile             string        `yaml:"ca_file" help:"PEM certificates to trust instead of the system's"`
	Slots              int           `yaml:"slots" default:"2" help:"VMs that may run at once; macOS allows two macOS guests"`
	AllowCopy          bool          `yaml:"allow_copy" default:"false" help:"copy images in full where the volume has no copy-on-write clones"`
	DiskReserve        int           `yaml:"disk_reserve_mib" default:"0" help:"MiB that must be free for what a new VM will write; 0 is a quarter of its image"`
	ImagesDir          string        `yaml:"images_dir" required:"true" help:"folder of the images, on the volume of state_dir"`
	Cache              cache         `yaml:"cache" help:"images that are fetched, into images_dir"`
	Bucket             bucket        `yaml:"bucket" help:"how images of gs:// are fetched"`
	Registry           registry      `yaml:"registry" help:"how images of oci:// are fetched"`
	Backend            string        `yaml:"backend" help:"kind of VM: vz, qemu, or process, which has no isolation and is for development; empty is vz on a Mac and qemu on Linux"`
	QEMU               qemu          `yaml:"qemu" help:"how machines of the backend qemu are made"`
	Peers              peersOf       `yaml:"peers" help:"other hosts of the same local network, with which chunks of images are shared"`
	SavedStates        saved         `yaml:"saved_states" help:"states of booted VMs, from which later ones continue instead of booting"`
	VMM                string        `yaml:"vmm" help:"path of minifleet-vmm; empty looks beside this program"`
	Guest              string        `yaml:"guest" help:"path of minifleet-guest, for the process backend; empty looks beside this program"`
	SessionUser        string        `yaml:"session_user" help:"user as whom VMs run, on a Mac in that user's login session; the agent must be root"`
	GuestsDir          string        `yaml:"guests_dir" help:"folder of minifleet-guest for guests that are reached over SSH: minifleet-guest-OS-ARCH or OS-ARCH/minifleet-guest; empty looks beside this program"`
	SSH                sshLogin      `yaml:"ssh" help:"how guests of pools with guest: ssh are reached"`
	BootDelay          time.Duration `yaml:"boot_delay" default:"0s" help:"how long guests of the process backend pretend to boot"`
	BootTimeout        time.Duration `yaml:"boot_timeout" default:"5m" help:"longest time from a VM's start to its guest's first answer"`
	GuestTimeout       time.Duration `yaml:"guest_timeout" default:"1m" help:"longest silence of a standby's guest"`
	EndGrace           time.Duration `yaml:"end_grace" default:"30s" help:"how long a runner may take to end, where the controller does not say"`
	MaxLife            time.Duration `yaml:"max_life" default:"168h" help:"longest life of a VM, whatever it does"`
	ReportEvery        time.Duration `yaml:"report_every" default:"1m" help:"longest time between two reports to the controller"`
	ImagesEvery        time.Duration `yaml:"images_every" default:"30s" help:"time between two looks at the list of images"`
	LookEvery          time.Duration `yaml:"look_every" default:"25s" help:"longest time between two looks at a VM; a guest that hangs is found out so"`
	KeepFailures       int           `yaml:"keep_failures" default:"20" help:"failures whose diagnostics are kept"`
	LogLevel           string        `yaml:"log_level" default:"info" help:"debug, info, warn or error"`
	LogFormat          string        `yaml:"log_format" default:"text" help:"text or json"`
}

type qemu struct {
	Network     string    `yaml:"network" default:"isolated" help:"of guests whose pool names none: isolated, with no way out but the forwards, or nat, which reaches what the host reaches and not the host"`
	Forwards    []forward `yaml:"forwards" help:"what guests of an isolated network may reach"`
	Accelerator string    `yaml:"accelerator" help:"kvm, tcg (emulation), or empty for kvm where a boot shows that it works"`
}

type peersOf struct {
	Address  string   `yaml:"address" help:"where this host gives chunks of its images to others: IP:PORT or INTERFACE:PORT, of an interface that guests are not on; empty neither gives nor takes any"`
	Group    string   `yaml:"group" default:"default" help:"of hosts that reach each other over a local network; hosts of other groups are never asked"`
	Allow    []string `yaml:"allow" help:"networks (such as 10.1.0.0/16) from which others may come, besides that of the interface"`
	LimitMiB int      `yaml:"mib_per_second" default:"200" help:"the most that is given, to all others together"`
}

// config returns the settings as the agent takes them, or what is wrong with them.
func (p peersOf) config() (agent.PeersConfig, error) {
	c := agent.PeersConfig{Address: p.Address, Group: p.Group}
	for i, text := range p.Allow {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return c, fmt.Errorf("peers.allow[%d] is %.60q: give a network, such as 10.1.0.0/16", i, text)
		}
		c.Allow = append(c.Allow, network.Masked())
	}
	if p.LimitMiB < 1 || p.LimitMiB > maxPeerMiB {
		return c, fmt.Errorf("peers.mib_per_second is %d: give 1 to %d", p.LimitMiB, maxPeerMiB)
	}
	c.BytesPerSecond = p.LimitMiB << 20
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("peers: %w", err)
	}
	return c, nil
}

// maxPeerMiB is far more than any network brings.
const maxPeerMiB = 1 << 20

type cache struct {
	MaxGiB     int `yaml:"max_gib" default:"0" help:"what all fetched images and saved states may take; clones count in full, though they share their blocks; 0 sets no limit"`
	MaxImages  int `yaml:"max_images" default:"0" help:"how many fetched images there may be; 0 sets no limit"`
	MinFreeGiB int `yaml:"min_free_gib" default:"20" help:"what fetching, and saving states, leave free on the volume, for what VMs write"`
}

type bucket struct {
	KeyFile  string `yaml:"key_file" help:"file that holds a service account's key; empty is Application Default Credentials"`
	Endpoint string `yaml:"endpoint" help:"another address of the JSON API, of an emulator for example"`
}

type registry struct {
	TokenFile string `yaml:"token_file" help:"file that holds user:password, or a token alone; empty asks anonymously"`
}

// maxCacheGiB is far more than any host has.
const maxCacheGiB = 1 << 20

func (c cache) validate() error {
	var errs []error
	for key, n := range map[string]int{"max_gib": c.MaxGiB, "max_images": c.MaxImages, "min_free_gib": c.MinFreeGiB} {
		if n < 0 || n > maxCacheGiB {
			errs = append(errs, fmt.Errorf("cache.%s is %d: give 0 to %d", key, n, maxCacheGiB))
		}
	}
	return errors.Join(errs...)
}

// cacheConfig returns the settings as the cache takes them, but for its folder.
func (s *settings) cacheConfig() imagecache.Config {
	return imagecache.Config{
		MaxBytes: int64(s.Cache.MaxGiB) << 30, MaxImages: s.Cache.MaxImages, MinFree: int64(s.Cache.MinFreeGiB) << 30,
		Objects: objects.Options{KeyFile: s.Bucket.KeyFile, Endpoint: s.Bucket.Endpoint},
		OCI:     oci.Options{TokenFile: s.Registry.TokenFile},
	}
}

type forward struct {
	Guest string `yaml:"guest" required:"true" help:"address and port that guests call, within 10.0.2.0/24"`
	Host  string `yaml:"host" required:"true" help:"address and port where their calls arrive"`
}

type sshLogin struct {
	User         string      `yaml:"user" help:"user of the image to log in as; empty refuses pools with guest: ssh"`
	Key          secret.Text `yaml:"key" help:"private key, without a passphrase"`
	KeyFile      string      `yaml:"key_file" help:"file that holds it"`
	Password     secret.Text `yaml:"password" help:"in place of a key, or where the key is refused"`
	PasswordFile string      `yaml:"password_file" help:"file that holds it"`
	RunnerDir    string      `yaml:"runner_dir" default:"actions-runner" help:"folder of the runner in the guest; a relative one is in the user's folder"`
}

// ssh returns the settings as the agent takes them.
func (s *settings) ssh() agent.SSHConfig {
	return agent.SSHConfig{
		Credentials: remote.Credentials{User: s.SSH.User, Key: s.SSH.Key, Password: s.SSH.Password},
		GuestsDir:   s.GuestsDir, RunnerDir: s.SSH.RunnerDir,
	}
}

type saved struct {
	Enabled bool          `yaml:"enabled" default:"false" help:"save a state of the first VM of each image in each slot; not with the backend process"`
	SizeGiB int           `yaml:"size_gib" default:"100" help:"what all states may take on the disk, of cache.max_gib; clones count in full, though they share their blocks with the image"`
	Timeout time.Duration `yaml:"timeout" default:"1m" help:"longest time from the start of a VM with a state to its guest's first answer; then it boots instead"`
}

// maxSavedGiB is far more than any host has.
const maxSavedGiB = 1 << 20

func (s saved) validate() error {
	if s.SizeGiB < 1 || s.SizeGiB > maxSavedGiB {
		return fmt.Errorf("saved_states.size_gib is %d: give 1 to %d", s.SizeGiB, maxSavedGiB)
	}
	if s.Timeout <= 0 {
		return fmt.Errorf("saved_states.timeout is %v: give more than 0", s.Timeout)
	}
	return nil
}

// bytes is the limit of all states, 0 if none are kept.
func (s saved) bytes() int64 {
	if !s.Enabled {
		return 0
	}
	return int64(s.SizeGiB) << 30
}

// config returns the settings as the agent takes them, or what is wrong with them.
func (q qemu) config() (agent.QEMUConfig, error) {
	c := agent.QEMUConfig{Network: q.Network, Accelerator: q.Accelerator}
	for i, f := range q.Forwards {
		from, err := netip.ParseAddrPort(f.Guest)
		if err != nil {
			return c, fmt.Errorf("qemu.forwards[%d].guest is %.60q: give an address and a port, such as 10.0.2.100:443", i, f.Guest)
		}
		to, err := netip.ParseAddrPort(f.Host)
		if err != nil {
			return c, fmt.Errorf("qemu.forwards[%d].host is %.60q: give an address and a port, such as 192.0.2.7:443", i, f.Host)
		}
		c.Forwards = append(c.Forwards, options.Forward{Guest: from, Host: to})
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("qemu: %w", err)
	}
	return c, nil
}

func configKeys() string {
	var b strings.Builder
	if err := config.WriteHelp[settings](&b, envPrefix); err != nil {
		return err.Error()
	}
	return b.String()
}

// Validate returns everything that can be told to be wrong without the machine.
func (s *settings) Validate() error {
	var errs []error
	for key, path := range map[string]string{"state_dir": s.StateDir, "images_dir": s.ImagesDir} {
		if path != "" && !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("%s is %q: give an absolute path", key, path))
		}
	}
	if err := agent.CheckBackend(s.backend()); err != nil {
		errs = append(errs, err)
	}
	if err := s.ssh().Validate(); err != nil {
		errs = append(errs, fmt.Errorf("ssh: %w", err))
	}
	if _, err := s.QEMU.config(); err != nil {
		errs = append(errs, err)
	}
	if _, err := s.Peers.config(); err != nil {
		errs = append(errs, err)
	}
	if err := s.Cache.validate(); err != nil {
		errs = append(errs, err)
	}
	for key, path := range map[string]string{"bucket.key_file": s.Bucket.KeyFile, "registry.token_file": s.Registry.TokenFile} {
		if path != "" && !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("%s is %q: give an absolute path", key, path))
		}
	}
	if err := s.SavedStates.validate(); err != nil {
		errs = append(errs, err)
	}
	if _, err := program.NewLog(os.Stderr, s.LogLevel, s.LogFormat); err != nil {
		errs = append(errs, err)
	}
	if s.DiskReserve < 0 || s.DiskReserve > 1<<30 {
		errs = append(errs, fmt.Errorf("disk_reserve_mib is %d: give 0 to %d", s.DiskReserve, 1<<30))
	}
	check := s.agentConfig(nil)
	check.Machines = &agent.VMs{}
	return errors.Join(append(errs, check.Validate())...)
}

// backend is the kind of VM, where none is named the system's own.
func (s *settings) backend() vm.BackendName {
	switch {
	case s.Backend != "":
		return vm.BackendName(s.Backend)
	case runtime.GOOS == "darwin":
		return vm.BackendVZ
	default:
		return vm.BackendQEMU
	}
}

func (s *settings) agentConfig(log *slog.Logger) agent.Config {
	peers, _ := s.Peers.config() // Validate has said what is wrong with it
	return agent.Config{
		Peers:      peers,
		Controller: s.Controller, Name: s.Name, StateDir: s.StateDir, OtherUser: s.SessionUser != "", EnrolmentToken: s.EnrolmentToken, CAFile: s.CAFile,
		Slots: s.Slots, Backends: []string{string(s.backend())}, Version: program.Version(),
		BootTimeout: s.BootTimeout, RestoreTimeout: s.SavedStates.Timeout, GuestTimeout: s.GuestTimeout, EndGrace: s.EndGrace, KeepFailures: s.KeepFailures,
		ReportEvery: s.ReportEvery, ImagesEvery: s.ImagesEvery, LookEvery: s.LookEvery, Log: log,
	}
}

// account is the user as whom VMs run; nil means the agent's own.
func (s *settings) account() (*vm.Account, error) {
	if s.SessionUser == "" {
		return nil, nil
	}
	account, err := vm.LookUpAccount(s.SessionUser)
	if err != nil {
		return nil, fmt.Errorf("session_user: %w", err)
	}
	return &account, nil
}

// load reads the file, and fills in what lies beside this program.
func load(path string, getenv func(string) string) (settings, error) {
	s, err := config.Load[settings](path, envPrefix, getenv)
	if err != nil {
		return s, err
	}
	self, err := os.Executable()
	if err != nil {
		return s, err
	}
	for name, field := range map[string]*string{"minifleet-vmm": &s.VMM, "minifleet-guest": &s.Guest} {
		if *field == "" {
			*field = filepath.Join(filepath.Dir(self), name)
		}
	}
	if s.GuestsDir == "" {
		s.GuestsDir = filepath.Dir(self)
		if filepath.Base(s.GuestsDir) == runtime.GOOS+"-"+runtime.GOARCH { // as make build leaves it
			s.GuestsDir = filepath.Dir(s.GuestsDir)
		}
	}
	return s, nil
}

type configCommand struct {
	Check checkCommand `cmd:"" help:"Read a configuration file and say what is wrong with it."`
	Keys  keysCommand  `cmd:"" help:"List all keys with their defaults."`
}

type checkCommand struct {
	File string `arg:"" help:"Configuration file (YAML)."`
}

// Run checks a file.
func (c checkCommand) Run(s *surroundings) error {
	cfg, err := load(c.File, s.getenv)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.stdout, "%s is good: host %s with %d slots of %s serves %s\n", c.File, cfg.Name, cfg.Slots, cfg.backend(), cfg.Controller)
	return err
}

type keysCommand struct{}

// Run lists the keys.
func (keysCommand) Run(s *surroundings) error {
	_, err := fmt.Fprint(s.stdout, configKeys())
	return err
}
