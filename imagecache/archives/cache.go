// SPDX-License-Identifier: MIT

package archives

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// The ends of the names of files in the folder.
const (
	archiveEnd = ".tar.gz"
	partEnd    = ".part"
)

// Config says where the archives are kept and how they are fetched.
type Config struct {
	// Dir is the folder of this cache alone, made if missing. An absolute path.
	Dir string
	// MaxBytes bounds one archive. Zero means 2 GiB.
	MaxBytes int64
	// Keep is how many archives and parts stay of those that nobody uses, the ones used
	// last. Zero means 3.
	Keep int
	// Stall is how long a server may send nothing before the connection is given up.
	// Zero means 1 min.
	Stall time.Duration
	// Pause is the first pause before a fetch that was cut is tried again; each further
	// one is twice as long. Zero means 1 s.
	Pause time.Duration
	// Transport carries the requests. Nil means one like http.DefaultTransport, which
	// heeds the usual variables for proxies.
	Transport http.RoundTripper
	// Log receives what happens. Nil means nowhere.
	Log *slog.Logger
}

// Validate checks the configuration without touching the disk.
func (c Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.Dir) {
		errs = append(errs, fmt.Errorf("the folder of archives is %q: give an absolute path", c.Dir))
	}
	if c.MaxBytes < 0 || c.Keep < 0 || c.Stall < 0 || c.Pause < 0 {
		errs = append(errs, errors.New("sizes, counts and times must not be negative"))
	}
	return errors.Join(errs...)
}

// Ref names an archive: where it comes from, and what it is.
type Ref struct {
	URL    string // https:// or file://
	SHA256 string // of the archive, 64 hex digits
}

// parse checks a reference, which comes from the controller.
func (r Ref) parse() (source *url.URL, digest string, err error) {
	digest = strings.ToLower(r.SHA256)
	if len(digest) != 64 || strings.Trim(digest, "0123456789abcdef") != "" {
		return nil, "", fmt.Errorf("the digest %.80q is not 64 hex digits", r.SHA256)
	}
	source, err = url.Parse(r.URL)
	switch {
	case err != nil || len(r.URL) > 4096:
		return nil, "", fmt.Errorf("%.200q is not a URL", r.URL)
	case source.User != nil:
		return nil, "", fmt.Errorf("the URL %.200s carries a name or a password: give one without", source.Redacted())
	case source.Scheme == "https" && source.Hostname() != "":
		return source, digest, nil
	case source.Scheme == "file" && (source.Host == "" || source.Host == "localhost") && filepath.IsAbs(source.Path):
		return source, digest, nil
	}
	return nil, "", fmt.Errorf("the URL %.200q: want https://HOST/PATH, or file:///PATH on the host itself", r.URL)
}

// Progress tells how far a fetch has come.
type Progress struct {
	DoneBytes  int64
	TotalBytes int64 // 0 if the server does not say
}

// Cache gives out archives. Its methods may be called by several goroutines.
type Cache struct {
	cfg    Config
	http   *http.Client
	writer func(io.Writer) io.Writer // tests' way to a full volume

	mu      sync.Mutex // guards the rest, never held over the network
	flights map[string]*flight
	pins    map[string]int  // by digest
	proved  map[string]bool // digests whose file was read through in this process
}

// Open opens the cache.
func Open(cfg Config) (*Cache, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 2<<30)
	cfg.Keep = cmp.Or(cfg.Keep, 3)
	cfg.Stall = cmp.Or(cfg.Stall, time.Minute)
	cfg.Pause = cmp.Or(cfg.Pause, time.Second)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the folder of archives: %w", err)
	}
	return &Cache{
		cfg: cfg, http: newClient(cfg), writer: func(w io.Writer) io.Writer { return w },
		flights: map[string]*flight{}, pins: map[string]int{}, proved: map[string]bool{},
	}, nil
}

// Archive is an archive in the cache. Until Release nothing takes it away.
type Archive struct {
	SHA256 string // 64 lower-case hex digits
	Size   int64

	path    string
	once    sync.Once
	release func()
}

// Open opens the archive for reading.
func (a *Archive) Open() (*os.File, error) { return os.Open(a.path) }

// Release gives up the pin. Only the first call counts.
func (a *Archive) Release() { a.once.Do(a.release) }

// Ensure returns an archive, pinned, after it was fetched if it is not there. Calls for
// the same archive share one fetch, which goes on until the last of them is called off;
// each is told of the progress, if it wants. An error is a sentence for an operator.
func (c *Cache) Ensure(ctx context.Context, ref Ref, progress func(Progress)) (*Archive, error) {
	source, digest, err := ref.parse()
	if err != nil {
		return nil, err
	}
	if progress == nil {
		progress = func(Progress) {}
	}
	for {
		f := c.join(source, digest)
		err := f.wait(ctx, progress)
		f.leave()
		if errors.Is(err, errAbandoned) {
			continue // we came just when all others had left
		}
		if err != nil {
			return nil, fmt.Errorf("fetch %s: %w", shown(source), err)
		}
		a, err := c.take(digest)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was cleared away at this very moment
		}
		return a, err
	}
}

// join returns the work on an archive that is under way, or begins it.
func (c *Cache) join(source *url.URL, digest string) *flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[digest]; f != nil {
		f.join()
		return f
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	f := &flight{cancel: cancel, users: 1, moved: make(chan struct{}), done: make(chan struct{})}
	c.flights[digest] = f
	go func() {
		err := c.fetch(ctx, source, digest, f.show)
		cancel(nil)
		c.mu.Lock()
		delete(c.flights, digest)
		c.mu.Unlock()
		f.end(err)
	}()
	return f
}

// take pins an archive that is there, and clears away what was not used for longest.
func (c *Cache) take(digest string) (*Archive, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	path := c.path(digest, archiveEnd)
	now := time.Now()
	if err := os.Chtimes(path, now, now); err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	c.pins[digest]++
	a := &Archive{SHA256: digest, Size: info.Size(), path: path}
	a.release = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.pins[digest]--; c.pins[digest] == 0 {
			delete(c.pins, digest)
		}
	}
	if err := c.prune(); err != nil {
		c.cfg.Log.Warn("old archives stay on the disk", slog.String("folder", c.cfg.Dir), slog.Any("error", err))
	}
	return a, nil
}

// prune deletes what is not in use beyond those that were used last. The caller holds mu.
func (c *Cache) prune() error {
	entries, err := os.ReadDir(c.cfg.Dir)
	if err != nil {
		return err
	}
	type file struct {
		name string
		used time.Time
	}
	var idle []file
	for _, e := range entries {
		digest, isArchive := strings.CutSuffix(e.Name(), archiveEnd)
		digest, isPart := strings.CutSuffix(digest, partEnd)
		if !isArchive && !isPart || c.pins[digest] > 0 || c.flights[digest] != nil {
			continue
		}
		if info, err := e.Info(); err == nil {
			idle = append(idle, file{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(idle, func(a, b file) int { return b.used.Compare(a.used) })
	var errs []error
	for _, f := range idle[min(len(idle), c.cfg.Keep):] {
		errs = append(errs, os.Remove(filepath.Join(c.cfg.Dir, f.name)))
	}
	return errors.Join(errs...)
}

func (c *Cache) path(digest, end string) string { return filepath.Join(c.cfg.Dir, digest+end) }

// shown is a URL fit for errors and logs: what follows the path may be a secret.
func shown(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
