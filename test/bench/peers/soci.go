package peers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/test/tools"
)

// sociMinLayer is the least size of a layer that soci convert indexes, by default:
// smaller ones are pulled whole, and an image of such layers cannot be converted.
const sociMinLayer = 10 << 20

// Soci is SOCI snapshotter: lazy, with images that soci convert made (the second
// version of its index, which is found by an annotation of the image), or parallel,
// with images as they are.
type Soci struct {
	// Workload says how an image is started; with it, what a start opened is listed in
	// the index and fetched ahead, which SOCI's documentation calls experimental. Nil
	// converts without.
	Workload func(repository string) (Workload, error)
	// Parallel selects its mode that pulls and unpacks everything in parallel.
	Parallel bool

	paths    map[string]string
	progress io.Writer
}

// Name is "soci", "soci-prefetch" with a workload, or "soci-parallel".
func (s *Soci) Name() string {
	switch {
	case s.Parallel:
		return "soci-parallel"
	case s.Workload != nil:
		return "soci-prefetch"
	}
	return "soci"
}

// Ensure builds the two programs and, to record starts, what a node and Stargz need;
// it takes igzip and unpigz out of their packages.
func (s *Soci) Ensure(ctx context.Context, progress io.Writer) (err error) {
	s.progress = progress
	s.paths, err = tools.Ensure(ctx, progress, append(tools.All(), tools.Stargz, tools.Soci, tools.SociSnapshotter, tools.Igzip, tools.Unpigz)...)
	return err
}

// Version is the release of SOCI snapshotter.
func (s *Soci) Version() string { return versionOf(s.paths[tools.Soci]) }

// Convert makes the indexed image, with the command's defaults (spans of 4 MiB). It
// returns plainTag where no layer is large enough for an index.
func (s *Soci) Convert(ctx context.Context, r Registry, repository, plainTag string) (string, error) {
	if s.Parallel {
		return plainTag, nil
	}
	plain, err := reference(r, repository, plainTag)
	if err != nil {
		return "", err
	}
	img, err := remote.Image(plain, remote.WithContext(ctx))
	if err != nil {
		return "", err
	}
	large, err := hasLarge(img)
	if err != nil || !large {
		return plainTag, err
	}
	rec := recorder{s.Workload, s.progress, s.paths}
	tag, list, exists, err := rec.plan(ctx, r, repository, plainTag, s.Name(), s.Version())
	if err != nil || exists {
		return tag, err
	}
	to, err := reference(r, repository, tag)
	if err != nil {
		return "", err
	}
	return tag, s.convert(ctx, img, plain, to, list)
}

// hasLarge says whether soci convert would index a layer of the image.
func hasLarge(img v1.Image) (bool, error) {
	m, err := img.Manifest()
	if err != nil {
		return false, err
	}
	for _, l := range m.Layers {
		if l.Size >= sociMinLayer {
			return true, nil
		}
	}
	return false, nil
}

// convert takes the image through two OCI layouts, so that no containerd is needed.
func (s *Soci) convert(ctx context.Context, img v1.Image, from, to name.Reference, list string) (err error) {
	cache, err := tools.CacheDir()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(cache, "soci-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	p, err := layout.Write(in, empty.Index)
	if err != nil {
		return err
	}
	if err := p.AppendImage(img); err != nil {
		return fmt.Errorf("fetching %s: %w", from, err)
	}
	args := []string{"--root", filepath.Join(dir, "root"), "convert", "--standalone", "--format", "oci-dir"}
	if list != "" {
		files := filepath.Join(dir, "prefetch.json")
		if err := asJSON(list, files); err != nil {
			return err
		}
		args = append(args, "--prefetch-files-json", files)
	}
	began := time.Now()
	tools.Say(s.progress, "%s: converting %s", s.Name(), from)
	cmd := exec.CommandContext(ctx, s.paths[tools.Soci], append(args, in, out)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir) // it copies the image there
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("converting %s: %w: %s", from, err, bytes.TrimSpace(text))
	}
	made, err := converted(out)
	if err != nil {
		return fmt.Errorf("what soci convert made of %s: %w", from, err)
	}
	if err := remote.WriteIndex(to, made, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("pushing %s: %w", to, err)
	}
	tools.Say(s.progress, "%s: converted %s in %.1f s", s.Name(), from, time.Since(began).Seconds())
	return nil
}

// asJSON writes the lines of list as a JSON array.
func asJSON(list, file string) error {
	text, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	b, err := json.Marshal(strings.Split(strings.TrimSpace(string(text)), "\n"))
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o644)
}

// converted returns the image index in an OCI layout: the layout's only entry, which
// is itself an index of the image and of what SOCI knows of it.
func converted(dir string) (v1.ImageIndex, error) {
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	m, err := top.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(m.Manifests) == 1 && m.Manifests[0].MediaType.IsIndex() {
		return top.ImageIndex(m.Manifests[0].Digest)
	}
	return top, nil
}

// Setup says where the daemon is.
func (s *Soci) Setup(o Options) (Setup, error) {
	return Setup{Snapshotter: "soci", Config: proxyConfig("soci", o), SnapshotDirs: []string{filepath.Join(o.root(), "snapshotter", "snapshots")}}, nil
}

// sociConfig is the snapshotter's configuration: for the lazy mode its defaults,
// for the parallel one the numbers of its documentation's example. It asks containerd
// for content, and wants mirrors as URLs.
func (s *Soci) sociConfig(o Options) string {
	text := fmt.Sprintf(`[resolver.host.%[1]q]
  [[resolver.host.%[1]q.mirrors]]
    host = "http://%[1]s"
    insecure = true

[content_store]
  containerd_address = %[2]q
`, o.Registry, o.Containerd)
	if s.Workload != nil {
		text += "\n[prefetch]\n  enable = true\n"
	}
	if s.Parallel {
		text += fmt.Sprintf(`  type = "containerd"

[pull_modes.soci_v2]
  enable = false

[pull_modes.parallel_pull_unpack]
  enable = true
  max_concurrent_downloads = 50
  max_concurrent_downloads_per_image = 10
  concurrent_download_chunk_size = "8mb"
  max_concurrent_unpacks = 20
  max_concurrent_unpacks_per_image = 10
  discard_unpacked_layers = true

  [pull_modes.parallel_pull_unpack.decompress_streams."gzip"]
    path = %q
    args = ["-d", "-c"]
`, s.paths[tools.Unpigz])
	}
	return text
}

// Start starts the daemon.
func (s *Soci) Start(ctx context.Context, o Options) (Running, error) {
	if o.Containerd == "" {
		return nil, errors.New("SOCI snapshotter needs the node's containerd")
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	config := filepath.Join(o.Dir, "config.toml")
	if err := os.WriteFile(config, []byte(s.sociConfig(o)), 0o644); err != nil {
		return nil, err
	}
	// The layers that it pulls whole it unpacks with igzip, where it finds it.
	path := []string{filepath.Dir(s.paths[tools.Igzip])}
	d, err := startDaemon(ctx, s.Name(), o, path, s.paths[tools.SociSnapshotter], "--root", o.root(), "--address", o.socket(), "--config", config)
	if err != nil || !s.Parallel {
		return d, err
	}
	return &eager{d}, nil
}

// eager is a daemon that unpacks by design.
type eager struct{ Running }

func (e *eager) NotLazy(context.Context) (int, error) { return 0, nil }
