package build_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/apparate/apparate/hack/image/build"
	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/tools"
)

// root is that of the sources.
const root = "../../.."

// copySources copies all that may go into a build.
func copySources(t *testing.T, to string) {
	t.Helper()
	for _, part := range []string{"go.mod", "go.sum", "api", "charts", "cmd", "controllers", "converter", "snapshotter"} {
		from := filepath.Join(root, part)
		st, err := os.Stat(from)
		switch {
		case err != nil:
		case st.IsDir():
			err = os.CopyFS(filepath.Join(to, part), os.DirFS(from))
		default:
			var text []byte
			if text, err = os.ReadFile(from); err == nil {
				err = os.WriteFile(filepath.Join(to, part), text, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Two builds are one image, in two places, one of them no git repository, with other
// modes and times of the sources and in another environment; and it runs.
func TestImage(t *testing.T) {
	img, err := build.Build(t.Context(), t.Output(), build.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("again", func(t *testing.T) { again(t, img) })
	t.Run("content", func(t *testing.T) { content(t, img) })
	t.Run("runs", func(t *testing.T) { runs(t, img) })
}

func again(t *testing.T, img v1.Image) {
	dir := t.TempDir()
	copySources(t, dir)
	t.Chdir(dir)
	t.Setenv("GOFLAGS", "-ldflags=-w")
	t.Setenv("TMPDIR", t.TempDir())
	other, err := build.Build(t.Context(), t.Output(), build.Options{})
	if err != nil {
		t.Fatal(err)
	}
	one, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if two, err := other.Digest(); err != nil || one != two {
		t.Errorf("built once more it is %s, not %s, %v", two, one, err)
	}
}

// pushed pushes an image or an index to a registry.
func pushed(t *testing.T, img remote.Taggable) name.Reference {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(t.Output(), "", 0))))
	t.Cleanup(s.Close)
	ref, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://") + "/apparate:1")
	if err == nil {
		err = remote.Push(ref, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// content looks at everything in the image.
func content(t *testing.T, img v1.Image) {
	pulled, err := remote.Image(pushed(t, img))
	if err == nil {
		err = validate.Image(pulled)
	}
	if err != nil {
		t.Error(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.Config.User != "65532:65532" || !slices.Equal(c.Config.Entrypoint, []string{"/apparate"}) || c.OS != "linux" || !c.Created.Equal(time.Unix(0, 0)) {
		t.Errorf("%+v", c)
	}
	for label, want := range map[string]string{"title": "apparate", "version": "1.0.0", "licenses": "Apache-2.0", "source": "https://github.com/apparate/apparate"} {
		if got := c.Config.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("label %s is %q", label, got)
		}
	}
	m, err := img.Manifest()
	if err != nil || m.MediaType != types.OCIManifestSchema1 || m.Config.MediaType != types.OCIConfigJSON {
		t.Errorf("%+v, %v", m, err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	var total int64
	texts := map[string][]byte{}
	for i, l := range layers {
		if m.Layers[i].MediaType != types.OCILayer {
			t.Errorf("layer %d is a %s", i, m.Layers[i].MediaType)
		}
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		files := tar.NewReader(r)
		for {
			h, err := files.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(time.Unix(0, 0)) {
				t.Errorf("%+v", h)
			}
			if texts[h.Name], err = io.ReadAll(files); err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%s %o", h.Name, h.Mode))
		}
		size, err := l.Size()
		if err = errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
		total += size
	}
	want := []string{"etc/ 755", "etc/group 644", "etc/nsswitch.conf 644", "etc/passwd 644", "etc/ssl/ 755", "etc/ssl/certs/ 755", build.Certificates + " 644", "tmp/ 1777", "apparate 755", "apparate-operator 755"}
	if !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
	if total > 40<<20 {
		t.Errorf("it has %d bytes", total)
	}
	t.Logf("%.1f MB; apparate %.1f MB, apparate-operator %.1f MB on disk", float64(total)/1e6, float64(len(texts["apparate"]))/1e6, float64(len(texts["apparate-operator"]))/1e6)
	pool := x509.NewCertPool()
	if n := strings.Count(string(texts[build.Certificates]), "BEGIN"); !pool.AppendCertsFromPEM(texts[build.Certificates]) || n < 100 {
		t.Errorf("%d certificate authorities", n)
	}
	if here, err := filepath.Abs(root); err != nil || bytes.Contains(texts["apparate"], []byte(here)) {
		t.Errorf("the program names %s, where it was built: %v", here, err)
	}
}

// runs starts the programs with containerd and runc.
func runs(t *testing.T, img v1.Image) {
	paths, err := tools.Ensure(t.Context(), t.Output(), tools.All()...)
	if err != nil {
		t.Fatal(err)
	}
	r, err := node.StartRegistry(t.Context(), paths[tools.Registry], t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	ref, err := name.ParseReference(r.Addr + "/apparate/apparate:1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(t.Context(), node.Options{Dir: t.TempDir(), Tools: paths, Registries: []string{r.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			n.WriteLogs(t.Output())
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := n.Pull(t.Context(), ref.String(), node.Overlayfs); err != nil {
		t.Fatal(err)
	}
	for _, p := range build.Programs {
		c, err := n.Run(t.Context(), ref.String(), node.Overlayfs, p, nil, "/"+p, "--version")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.WaitLine(t.Context(), p+" version 1.0.0"); err != nil {
			t.Error(err)
		}
		<-c.Done()
	}
}

// programs are some for an index, which are not looked into.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range build.Programs {
		if err := os.WriteFile(filepath.Join(dir, p), []byte(p), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestIndex(t *testing.T) {
	o := build.Options{Root: root, Bin: programs(t), Version: "2.0.0", Revision: "abc", Created: time.Unix(1e9, 0)}
	idx, err := build.Index(t.Context(), t.Output(), o, "amd64", "arm64")
	if err != nil {
		t.Fatal(err)
	}
	pulled, err := remote.Index(pushed(t, idx))
	if err == nil {
		err = validate.Index(pulled)
	}
	if err != nil {
		t.Error(err)
	}
	m, err := idx.IndexManifest()
	if err != nil || len(m.Manifests) != 2 || m.MediaType != types.OCIImageIndex {
		t.Fatalf("%+v, %v", m, err)
	}
	for i, arch := range []string{"amd64", "arm64"} {
		d := m.Manifests[i]
		if d.Platform == nil || d.Platform.String() != "linux/"+arch || d.ArtifactType != "" || d.MediaType != types.OCIManifestSchema1 {
			t.Errorf("%+v", d)
		}
		img, err := idx.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		c, err := img.ConfigFile()
		if err != nil || c.Architecture != arch || c.Config.Labels["org.opencontainers.image.revision"] != "abc" || !c.Created.Equal(time.Unix(1e9, 0)) {
			t.Errorf("%+v, %v", c, err)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 3 {
			t.Fatal(len(layers), err)
		}
		r, err := layers[1].Compressed()
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(r)
		if err != nil || !z.ModTime.IsZero() || z.Name != "" {
			t.Errorf("%+v, %v", z, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	o.Bin = t.TempDir()
	if _, err := build.Index(t.Context(), t.Output(), o, "amd64"); err == nil || !strings.HasPrefix(err.Error(), "linux/amd64: ") {
		t.Errorf("without programs: %v", err)
	}
}
