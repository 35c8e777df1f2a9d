// SPDX-License-Identifier: MIT

package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/time/rate"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

// Options say how a registry is spoken to. The zero Options do so anonymously.
type Options struct {
	// TokenFile holds "user:password", or a registry's token alone. It is read anew each
	// time that credentials are needed.
	TokenFile string
	// Keychain takes the credentials of Docker's configuration, where there are any, if
	// there is no TokenFile.
	Keychain bool
	// Arch is that of the host: an image for another one is refused. "" takes any.
	Arch string
	// Limit, if set, bounds the bytes a second.
	Limit *rate.Limiter
	// Layers is how many are fetched side by side, 4 by default.
	Layers int
}

// Repository is a registry's repository of images. Its methods may be called by several
// goroutines.
type Repository struct {
	ref  manifest.Reference
	repo name.Repository
	o    Options
	base *http.Transport

	pause func(context.Context, time.Duration) error // between two attempts
	stall time.Duration                              // how long a registry may say nothing
}

// Open prepares to speak to the repository that ref names. It does not connect yet.
func Open(ref manifest.Reference, o Options) (*Repository, error) {
	if ref.Scheme != manifest.SchemeOCI {
		return nil, fmt.Errorf("image %s is not in a registry: give oci://REGISTRY/REPOSITORY", ref)
	}
	if _, err := manifest.ParseReference(ref.String()); err != nil {
		return nil, err
	}
	host, parent, _ := strings.Cut(ref.Location, "/")
	registry, err := name.NewRegistry(host, name.StrictValidation)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	if o.Layers == 0 {
		o.Layers = 4
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.DisableCompression = true // what comes is what a digest is of
	base.MaxIdleConnsPerHost = o.Layers
	base.Protocols = new(http.Protocols)
	base.Protocols.SetHTTP1(true) // a connection for each layer, not one for all
	return &Repository{
		ref: ref, repo: registry.Repo(parent, ref.Name), o: o, base: base,
		pause: pause, stall: time.Minute,
	}, nil
}

// Resolve returns the digest of the manifest that the reference's tag names now, or the
// reference's own digest. A tag that does not exist is an ErrNotFound.
func (r *Repository) Resolve(ctx context.Context) (digest string, err error) {
	if r.ref.Digest != "" {
		return r.ref.Digest, nil
	}
	defer r.base.CloseIdleConnections()
	b, err := r.manifest(ctx, nil, r.ref.Tag)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", r.ref, err)
	}
	return manifest.Digest(b), nil
}

// Image reads the manifest and the configuration of the image with this digest.
func (r *Repository) Image(ctx context.Context, digest string) (*Image, error) {
	defer r.base.CloseIdleConnections()
	ref := r.ref.At(digest)
	if !manifest.ValidDigest(digest) {
		return nil, fmt.Errorf("image %s: %.80q is no digest", r.ref, digest)
	}
	img, err := r.image(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return img, nil
}

func (r *Repository) image(ctx context.Context, digest string) (*Image, error) {
	c, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	b, err := r.manifest(ctx, c, digest)
	if err != nil {
		return nil, err
	}
	if manifest.Digest(b) != digest {
		return nil, errDigest("its manifest")
	}
	parts, err := parseManifest(b)
	if err != nil {
		return nil, err
	}
	config, err := r.small(ctx, c, "blobs/"+parts.config.digest, "", parts.config.size)
	if err != nil {
		return nil, fmt.Errorf("its configuration: %w", err)
	}
	if manifest.Digest(config) != parts.config.digest {
		return nil, errDigest("its configuration")
	}
	return newImage(r, c, digest, parts, config)
}

// connect finds out how the registry wants to be spoken to. What it returns renews its
// token by itself.
func (r *Repository) connect(ctx context.Context) (*http.Client, error) {
	auth, err := r.authenticator()
	if err != nil {
		return nil, err
	}
	var c *http.Client
	err = r.try(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeoutCause(ctx, r.stall, errStalled)
		defer cancel()
		scopes := []string{r.repo.Scope(transport.PullScope)}
		t, err := transport.NewWithContext(ctx, r.repo.Registry, auth, transport.NewUserAgent(guard{r.base}, "minifleet"), scopes)
		c = &http.Client{Transport: t}
		if errors.Is(context.Cause(ctx), errStalled) {
			err = errStalled
		}
		return err
	})
	return c, err
}

func (r *Repository) authenticator() (authn.Authenticator, error) {
	switch {
	case r.o.TokenFile != "":
		return tokenFile(r.o.TokenFile), nil
	case r.o.Keychain:
		auth, err := authn.DefaultKeychain.Resolve(r.repo)
		if err != nil {
			return nil, fmt.Errorf("the credentials of Docker's configuration: %w", err)
		}
		return auth, nil
	}
	return authn.Anonymous, nil
}

// tokenFile is the path of a file with credentials.
type tokenFile string

const maxTokenBytes = 64 << 10

// Authorization reads the file.
func (t tokenFile) Authorization() (*authn.AuthConfig, error) {
	f, err := os.Open(string(t))
	if err != nil {
		return nil, final{fmt.Errorf("the registry's token file: %w", err)}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxTokenBytes+1))
	if err != nil {
		return nil, final{fmt.Errorf("the registry's token file: %w", err)}
	}
	text := strings.TrimSpace(string(b))
	user, password, pair := strings.Cut(text, ":")
	switch {
	case text == "" || len(b) > maxTokenBytes || strings.ContainsAny(text, " \r\n\t\x00"):
		return nil, final{fmt.Errorf("the registry's token file %s: it must hold one line, USER:PASSWORD or a token", string(t))}
	case pair:
		return &authn.AuthConfig{Username: user, Password: password}, nil
	}
	return &authn.AuthConfig{RegistryToken: text}, nil
}
