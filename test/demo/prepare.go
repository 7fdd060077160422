package main

import (
	"context"
	"io"
	"maps"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/tools"
)

// source is one image to be started.
type source struct {
	name string
	img  v1.Image
	spec images.Spec
}

// prepared is everything the measurement needs.
type prepared struct {
	tools    map[string]string
	apparate string // our own program
	images   []source
}

// prepare builds the programs and assembles the images, at the same time: the
// first is bound by the processor, the second mostly by the network. Programs are
// built one after the other, because they share compiled packages.
func prepare(ctx context.Context, progress io.Writer, names []string) (prepared, error) {
	root, err := tools.Root(ctx)
	if err != nil {
		return prepared{}, err
	}
	p := prepared{apparate: filepath.Join(root, "bin", "apparate")}
	runc := map[string]string{}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return tools.Download(gctx, tools.Containerd, tools.Registry)
	})
	g.Go(func() error {
		err := tools.GoBuild(gctx, progress, "apparate", root, p.apparate, "-ldflags", "-s -w", "./cmd/apparate")
		if err != nil {
			return err
		}
		p.tools, err = tools.Ensure(gctx, progress, tools.Registry, tools.Containerd, tools.Shim, tools.Ctr)
		return err
	})
	g.Go(func() (err error) {
		if runc, err = tools.Ensure(gctx, progress, tools.Runc); err != nil {
			return err
		}
		p.images, err = buildImages(gctx, progress, names)
		return err
	})
	if err := g.Wait(); err != nil {
		return prepared{}, err
	}
	maps.Copy(p.tools, runc)
	return p, nil
}

// buildImages assembles the named images, or all of them.
func buildImages(ctx context.Context, progress io.Writer, names []string) ([]source, error) {
	cache, err := tools.CacheDir()
	if err != nil {
		return nil, err
	}
	if names == nil {
		names = images.Names()
	}
	var all []source
	for _, name := range names {
		img, spec, err := images.Build(ctx, name, cache, progress)
		if err != nil {
			return nil, err
		}
		all = append(all, source{name, img, spec})
	}
	return all, nil
}
