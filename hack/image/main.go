// Command image builds the container image of the project, writes it as an OCI layout
// and pushes it if told to.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/hack/image/build"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// config is the command line.
type config struct {
	build.Options
	archs     string
	out, push string
	plain     bool
}

func parse(args []string) (config, error) {
	var c config
	f := flag.NewFlagSet("image", flag.ContinueOnError)
	f.StringVar(&c.out, "out", "out/image", "directory of the OCI layout, made anew")
	f.StringVar(&c.push, "push", "", "push to this registry/name:tag, with docker's credentials")
	f.BoolVar(&c.plain, "plain-http", false, "push without TLS")
	f.StringVar(&c.archs, "arch", "", "architectures, amd64,arm64: an index of them instead of one image for this machine")
	f.StringVar(&c.Version, "version", "", "version of the programs (default: appVersion of the chart)")
	f.StringVar(&c.Revision, "revision", "", "commit, for a label")
	if err := f.Parse(args); err != nil {
		return config{}, err
	}
	if f.NArg() > 0 {
		return config{}, fmt.Errorf("%q is no flag", f.Arg(0))
	}
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		s, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return config{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		c.Created = time.Unix(s, 0)
	}
	return c, nil
}

// image is one image or an index.
type image interface {
	remote.Taggable
	Digest() (v1.Hash, error)
}

func run(ctx context.Context, args []string) error {
	c, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	var ref name.Reference
	if c.push != "" { // before the work
		var opts []name.Option
		if c.plain {
			opts = append(opts, name.Insecure)
		}
		if ref, err = name.ParseReference(c.push, opts...); err != nil {
			return fmt.Errorf("--push: %w", err)
		}
	}
	var img image
	var images []v1.Image
	if c.archs == "" {
		one, err := build.Build(ctx, os.Stderr, c.Options)
		if err != nil {
			return err
		}
		img, images = one, []v1.Image{one}
	} else {
		idx, err := build.Index(ctx, os.Stderr, c.Options, strings.Split(c.archs, ",")...)
		if err != nil {
			return err
		}
		m, err := idx.IndexManifest()
		if err != nil {
			return err
		}
		for _, d := range m.Manifests {
			one, err := idx.Image(d.Digest)
			if err != nil {
				return err
			}
			images = append(images, one)
		}
		img = idx
	}
	if err := write(c.out, img); err != nil {
		return fmt.Errorf("writing %s: %w", c.out, err)
	}
	if ref != nil {
		if err := remote.Push(ref, img, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
			return fmt.Errorf("pushing %s: %w", ref, err)
		}
	}
	return describe(c, ref, img, images)
}

// write makes the layout anew. What is no layout is not removed.
func write(dir string, img image) error {
	left, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(left) > 0 {
		if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err != nil {
			return fmt.Errorf("it has other files, no OCI layout: remove them or give another --out: %w", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if idx, ok := img.(v1.ImageIndex); ok {
		return l.AppendIndex(idx)
	}
	return l.AppendImage(img.(v1.Image))
}

// describe says what was made.
func describe(c config, ref name.Reference, img image, images []v1.Image) error {
	d, err := img.Digest()
	if err != nil {
		return err
	}
	for _, one := range images {
		config, err := one.ConfigFile()
		if err != nil {
			return err
		}
		layers, err := one.Layers()
		if err != nil {
			return err
		}
		size := int64(0)
		for _, l := range layers {
			n, err := l.Size()
			if err != nil {
				return err
			}
			size += n
		}
		fmt.Printf("linux/%s: %.1f MB\n", config.Architecture, float64(size)/1e6)
	}
	fmt.Printf("%s: %s\n", c.out, d)
	if ref != nil {
		fmt.Printf("pushed: %s@%s\n", ref.Context(), d)
	}
	return nil
}
