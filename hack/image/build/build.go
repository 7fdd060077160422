// Package build makes the container image of the project, without a container engine.
// The same sources and the same Go give the same digest, wherever they are.
package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"sigs.k8s.io/yaml"
)

// Programs are what the image has, each in the root directory.
var Programs = []string{"apparate", "apparate-operator"}

// User is who runs the programs, unless a pod says otherwise, as the nodes' does.
const User = "65532:65532"

// Options of an image.
type Options struct {
	// Root is the directory of the sources [that of the module in the working directory].
	Root string
	// Version is what the programs say they are [appVersion of the chart].
	Version string
	// Revision is the commit, for a label [none].
	Revision string
	// Created is the time in the image's configuration [the beginning of 1970].
	Created time.Time
	// Arch is GOARCH of the programs [the machine's].
	Arch string
	// Bin, if set, is a directory with the programs, which are not built then.
	Bin string
}

// fill sets what is not set.
func (o *Options) fill(ctx context.Context) error {
	if o.Root == "" {
		out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
		if err != nil {
			return fmt.Errorf("go env GOMOD: %w", err)
		}
		o.Root = filepath.Dir(strings.TrimSpace(string(out)))
	}
	if o.Version == "" {
		chart := filepath.Join(o.Root, "charts/apparate/Chart.yaml")
		text, err := os.ReadFile(chart)
		if err != nil {
			return err
		}
		var c struct {
			AppVersion string `json:"appVersion"`
		}
		if err := yaml.Unmarshal(text, &c); err != nil || c.AppVersion == "" {
			return errors.Join(fmt.Errorf("%s has no appVersion", chart), err)
		}
		o.Version = c.AppVersion
	}
	if o.Arch == "" {
		o.Arch = runtime.GOARCH
	}
	if o.Created.IsZero() {
		o.Created = time.Unix(0, 0)
	}
	return nil
}

// Build makes the image for one architecture.
func Build(ctx context.Context, progress io.Writer, o Options) (v1.Image, error) {
	if err := o.fill(ctx); err != nil {
		return nil, err
	}
	bin := o.Bin
	if bin == "" {
		var err error
		if bin, err = os.MkdirTemp("", "apparate-image-"); err != nil {
			return nil, err
		}
		defer func() { _ = os.RemoveAll(bin) }() // a temporary directory
		if err := compile(ctx, progress, o, bin); err != nil {
			return nil, err
		}
	}
	base, err := baseFiles()
	if err != nil {
		return nil, err
	}
	adds := []mutate.Addendum{{History: v1.History{CreatedBy: "hack/image: users, certificate authorities, /tmp"}}}
	if adds[0].Layer, err = layer(base); err != nil {
		return nil, err
	}
	for _, p := range Programs {
		text, err := os.ReadFile(filepath.Join(bin, p))
		if err != nil {
			return nil, err
		}
		l, err := layer([]file{{name: p, mode: 0o755, text: text}})
		if err != nil {
			return nil, err
		}
		adds = append(adds, mutate.Addendum{Layer: l, History: v1.History{CreatedBy: "hack/image: /" + p + " " + o.Version}})
	}
	return assemble(o, adds)
}

// assemble puts layers and configuration together.
func assemble(o Options, adds []mutate.Addendum) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for i := range adds {
		adds[i].History.Created = v1.Time{Time: o.Created.UTC()}
		adds[i].MediaType = types.OCILayer
	}
	img, err := mutate.Append(img, adds...)
	if err != nil {
		return nil, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Created = "linux", o.Arch, v1.Time{Time: o.Created.UTC()}
	c.Config = v1.Config{User: User, Entrypoint: []string{"/" + Programs[0]}, WorkingDir: "/", Env: []string{"PATH=/"}, Labels: labels(o)}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		return nil, err
	}
	return image{mutate.Annotations(img, labels(o)).(v1.Image)}, nil
}

// image is no artifact: descriptors of an image whose configuration is not of docker's
// type would say so.
type image struct{ v1.Image }

// ArtifactType is none.
func (image) ArtifactType() (string, error) { return "", nil }

// labels of the image specification, "Pre-Defined Annotation Keys".
func labels(o Options) map[string]string {
	l := map[string]string{
		"org.opencontainers.image.title":       "apparate",
		"org.opencontainers.image.description": "Container images that start before they are downloaded",
		"org.opencontainers.image.version":     o.Version,
		"org.opencontainers.image.source":      "https://github.com/apparate/apparate",
		"org.opencontainers.image.licenses":    "Apache-2.0",
	}
	if o.Revision != "" {
		l["org.opencontainers.image.revision"] = o.Revision
	}
	return l
}

// Index makes one image for each of the architectures, and the index of them.
func Index(ctx context.Context, progress io.Writer, o Options, archs ...string) (v1.ImageIndex, error) {
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	if err := o.fill(ctx); err != nil {
		return nil, err
	}
	for _, arch := range archs {
		o.Arch = arch
		img, err := Build(ctx, progress, o)
		if err != nil {
			return nil, fmt.Errorf("linux/%s: %w", arch, err)
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	return mutate.Annotations(idx, labels(o)).(v1.ImageIndex), nil
}
