// Package images assembles container images for the demo, the tests and the
// benchmarks: real programs from Debian packages, without a registry to start
// from, and small synthetic images with everything awkward that a layer can carry.
//
// An image of packages is a recipe: a base as small as Debian's own slim image,
// one layer for each set of packages above it, and one of our files. Package
// scripts are not run; the recipes list what they would have done. The same
// packages give the same bytes. Layers are cached by recipe, so images share
// their base, and a machine that has built them once needs no network.
package images

import (
	"context"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/apparate/apparate/test/debian"
)

// PortVariable is the environment variable that tells a server which port of
// 127.0.0.1 to listen on.
const PortVariable = "PORT"

// Spec says how to start an image and how to see that it is ready: it gives one
// correct answer, either a line of output or an HTTP page. The program goes on
// running afterwards.
type Spec struct {
	// Repository is the image's name in a registry, without host and tag.
	Repository string
	// Line is a line of standard output that means ready; empty for a server.
	Line string
	// Path and Body are a server's page and the text it must contain.
	Path, Body string
}

// Operation is one of the things that an image is started for.
type Operation struct {
	// Name tells the operations of one image apart: "start" where it is the only one.
	Name string
	// Env is added to the container's environment ("NAME=value").
	Env []string
	// Spec is what the operation answers.
	Spec Spec
}

// Operations returns what the named image can be started for, its default first.
func Operations(name string) ([]Operation, error) {
	r, ok := recipes()[name]
	switch {
	case !ok:
		return nil, unknown(name)
	case len(r.operations) > 0:
		return r.operations, nil
	}
	return []Operation{{Name: "start", Spec: r.spec}}, nil
}

// Names returns the demo's images, in the order of its table.
func Names() []string { return []string{"nginx", "numpy", "golang"} }

// Smoke returns the images of the benchmark's smoke tier, a few minutes of work.
func Smoke() []string { return []string{"python", "golang", "nginx", "redis"} }

// Core returns the images of the benchmark's core tier, in the order of its tables.
func Core() []string {
	return []string{
		"hello-static", "deb-slim", "python", "py-sci", "node-app", "java-app", "nginx", "postgres", "redis", "php-apache",
		"golang", "gcc", "ml-2g", "many-small",
	}
}

// All returns every image that Build knows, sorted.
func All() []string { return slices.Sorted(maps.Keys(recipes())) }

func unknown(name string) error {
	return fmt.Errorf("no image is called %q: there are %s", name, strings.Join(All(), ", "))
}

// Build returns the named image, assembling what is not in cacheDir. Progress
// lines are written to progress.
func Build(ctx context.Context, name, cacheDir string, progress io.Writer) (v1.Image, Spec, error) {
	r, ok := recipes()[name]
	if !ok {
		return nil, Spec{}, unknown(name)
	}
	b := &builder{
		dir:      filepath.Join(cacheDir, "images"),
		archive:  debian.Open(filepath.Join(cacheDir, "debian"), progress),
		progress: progress,
		closures: map[string][]debian.Package{},
	}
	layers := make([]mutate.Addendum, len(r.layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	for i := range r.layers {
		g.Go(func() error {
			l, err := b.layer(gctx, r.layers[:i+1])
			if err != nil {
				return fmt.Errorf("image %s, layer %s: %w", name, r.layers[i].name, err)
			}
			if r.docker {
				l.mediaType = types.DockerLayer
			}
			layers[i] = mutate.Addendum{
				Layer: l, MediaType: l.mediaType,
				History: v1.History{CreatedBy: "packages " + r.layers[i].name, Created: v1.Time{Time: created()}},
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, Spec{}, err
	}
	img, err := assemble(r, layers)
	return img, r.spec, err
}

// created is the time of every image: a fixed one, for the same bytes each time.
func created() time.Time { return time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC) }

func assemble(r recipe, layers []mutate.Addendum) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	if r.docker {
		img = mutate.MediaType(empty.Image, types.DockerManifestSchema2)
		img = mutate.ConfigMediaType(img, types.DockerConfigJSON)
	}
	img, err := mutate.Append(img, layers...)
	if err != nil {
		return nil, err
	}
	f, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	f = f.DeepCopy()
	f.OS, f.Architecture = "linux", runtime.GOARCH
	f.Created = v1.Time{Time: created()}
	f.Config = v1.Config{
		Env:    []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Labels: map[string]string{"org.opencontainers.image.title": r.spec.Repository},
	}
	for _, k := range slices.Sorted(maps.Keys(r.env)) {
		f.Config.Env = append(f.Config.Env, k+"="+r.env[k])
	}
	f.Config.Entrypoint = r.entrypoint
	f.Config.WorkingDir = "/"
	if r.spec.Path != "" {
		f.Config.ExposedPorts = map[string]struct{}{"8080/tcp": {}}
	}
	return mutate.ConfigFile(img, f)
}

// Files returns how many entries that are not directories an image of Build has in
// all of its layers.
func Files(img v1.Image) (int, error) {
	layers, err := img.Layers()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, l := range layers {
		ours, ok := l.(*layer)
		if !ok {
			return 0, fmt.Errorf("a layer of type %T is none of Build's", l)
		}
		n += ours.about.Files
	}
	return n, nil
}
