// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/program"
)

// cacheCommand looks after the images that were fetched to this host, also while the agent
// runs: what either of the two uses, the other leaves alone.
type cacheCommand struct {
	List   cacheListCommand   `cmd:"" help:"List the images that were fetched: how much of them is there, and what keeps them from being evicted."`
	Pin    cachePinCommand    `cmd:"" help:"Keep an image until it is unpinned."`
	Unpin  cacheUnpinCommand  `cmd:"" help:"Let an image go when its room is needed."`
	Evict  cacheEvictCommand  `cmd:"" help:"Delete an image that nothing keeps."`
	Verify cacheVerifyCommand `cmd:"" help:"Read images, all of them, and compare them with their manifests."`
}

// cacheFlags are those of every command.
type cacheFlags struct {
	Config string `required:"" placeholder:"FILE" help:"Configuration file (YAML) of the agent."`
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// open opens the agent's cache beside the agent.
func (f cacheFlags) open(s *surroundings) (*imagecache.Cache, error) {
	cfg, err := load(f.Config, s.getenv)
	if err != nil {
		return nil, err
	}
	c := cfg.cacheConfig()
	c.Dir, c.Beside = cfg.ImagesDir, true
	return imagecache.Open(c)
}

// with opens the cache for the time of a call.
func (f cacheFlags) with(s *surroundings, call func(*imagecache.Cache) error) error {
	c, err := f.open(s)
	if err != nil {
		return err
	}
	return errors.Join(call(c), c.Close())
}

func (f cacheFlags) json(s *surroundings, v any) error {
	out := json.NewEncoder(s.stdout)
	out.SetIndent("", "  ")
	out.SetEscapeHTML(false)
	return out.Encode(v)
}

// imageArg names one image.
type imageArg struct {
	Image string `arg:"" help:"Reference, name or digest of an image, or the first digits of its digest."`
}

type cacheListCommand struct{ cacheFlags }

// Run lists the images.
func (c cacheListCommand) Run(s *surroundings) error {
	return c.with(s, func(cache *imagecache.Cache) error {
		list := cache.Status()
		if c.Output == "json" {
			return c.json(s, list)
		}
		return printCache(s.stdout, list)
	})
}

func printCache(out io.Writer, list []imagecache.Status) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "Nothing was fetched. Images that were put into images_dir by hand are not listed.")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tSTATE\tMIB\tON DISK\tLAST USE\tKEPT BECAUSE")
	for _, i := range list {
		why := strings.Join(i.Pins, ", ")
		if i.Failure != "" {
			why = strings.TrimPrefix(why+"; "+i.Failure, "; ")
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%s\n", i.Image, i.State, i.TotalBytes>>20, i.StoredBytes>>20, i.LastUse, why)
	}
	return w.Flush()
}

// changed is what a command that changes something prints.
type changed struct {
	Image  string `json:"image"`
	Digest string `json:"digest"`
	Done   string `json:"done"`
}

// change finds the image and does something to it.
func (f cacheFlags) change(s *surroundings, image, done string, do func(*imagecache.Cache, string) error) error {
	return f.with(s, func(cache *imagecache.Cache) error {
		found, err := cache.Find(image)
		if err != nil {
			return err
		}
		if err := do(cache, found.Digest); err != nil {
			return err
		}
		if f.Output == "json" {
			return f.json(s, changed{Image: found.Image, Digest: found.Digest, Done: done})
		}
		_, err = fmt.Fprintf(s.stdout, "%s is %s\n", found.Image, done)
		return err
	})
}

type cachePinCommand struct {
	cacheFlags
	imageArg
}

// Run pins an image.
func (c cachePinCommand) Run(s *surroundings) error {
	return c.change(s, c.Image, "pinned", (*imagecache.Cache).Pin)
}

type cacheUnpinCommand struct {
	cacheFlags
	imageArg
}

// Run ends that.
func (c cacheUnpinCommand) Run(s *surroundings) error {
	return c.change(s, c.Image, "unpinned", (*imagecache.Cache).Unpin)
}

type cacheEvictCommand struct {
	cacheFlags
	imageArg
	Force bool `help:"Delete also what the controller holds, which has it fetched again."`
}

// Run deletes an image.
func (c cacheEvictCommand) Run(s *surroundings) error {
	return c.change(s, c.Image, "evicted", func(cache *imagecache.Cache, digest string) error { return cache.Evict(digest, c.Force) })
}

type cacheVerifyCommand struct {
	cacheFlags
	Images []string `arg:"" optional:"" name:"image" help:"References, names or digests; none means every image that is whole."`
}

// Help says what follows from damage.
func (cacheVerifyCommand) Help() string {
	return "Ends with status 1 if something is damaged. A damaged image is given to no machine until the agent has fetched what is wrong of it, " +
		"which it does when the image is needed next."
}

// verified is what is printed of one image.
type verified struct {
	Image  string            `json:"image"`
	Digest string            `json:"digest"`
	Damage []assemble.Damage `json:"damage"`
}

// Run verifies images.
func (c cacheVerifyCommand) Run(s *surroundings) error {
	return c.with(s, func(cache *imagecache.Cache) error {
		images, err := c.images(cache)
		if err != nil {
			return err
		}
		list, damaged := []verified{}, false
		for _, i := range images {
			damage, err := cache.Verify(s.ctx, i.Digest, nil)
			if err != nil {
				return err
			}
			damaged = damaged || len(damage) > 0
			list = append(list, verified{i.Image, i.Digest, append([]assemble.Damage{}, damage...)})
			if c.Output == "text" {
				if err := printVerified(s.stdout, list[len(list)-1]); err != nil {
					return err
				}
			}
		}
		if c.Output == "json" {
			err = c.json(s, list)
		}
		if err == nil && damaged {
			err = program.Exit(1)
		}
		return err
	})
}

func (c cacheVerifyCommand) images(cache *imagecache.Cache) ([]imagecache.Status, error) {
	var images []imagecache.Status
	if len(c.Images) == 0 {
		for _, i := range cache.Status() {
			if i.State == imagecache.StateWhole || i.State == imagecache.StateDamaged {
				images = append(images, i)
			}
		}
	}
	for _, text := range c.Images {
		found, err := cache.Find(text)
		if err != nil {
			return nil, err
		}
		images = append(images, found)
	}
	return images, nil
}

func printVerified(out io.Writer, v verified) error {
	if len(v.Damage) == 0 {
		_, err := fmt.Fprintf(out, "%s is what its manifest says\n", v.Image)
		return err
	}
	fmt.Fprintf(out, "%s is damaged:\n", v.Image)
	for _, d := range v.Damage {
		fmt.Fprintf(out, "  %s\n", d)
	}
	if len(v.Damage) == assemble.MaxDamages {
		fmt.Fprintln(out, "  and maybe more")
	}
	_, err := fmt.Fprintln(out, "The agent repairs it when it is needed next.")
	return err
}
