package e2e

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/test/registry"
)

// small is an image of one layer with a few files.
func small(t *testing.T) v1.Image {
	t.Helper()
	return image(t, layer(t, file{name: "etc/", mode: 0o755}, file{name: "etc/motd", mode: 0o644, body: []byte("hello\n")},
		file{name: "data", mode: 0o600, body: bytes.Repeat([]byte("0123456789abcdef"), 40_000)}))
}

// Whatever is wrong with what is to be converted: one line says so, and no tag
// moves.
func TestBadConvert(t *testing.T) {
	reg := registry.New(t)
	app := push(t, reg, "app:v1", small(t))
	host := reg.Host()
	if _, err := run(t, "convert", app); err != nil {
		t.Fatal(err)
	}
	fast := push(t, reg, "app:fast", read(t, app+"-apparate"))
	long := push(t, reg, "app:"+strings.Repeat("x", 125), small(t))
	taken := push(t, reg, "taken:v1", small(t))
	push(t, reg, "taken:v1-apparate", small(t))
	push(t, reg, "broken:gzip", image(t, static.NewLayer([]byte("this is no archive"), types.OCILayer)))
	push(t, reg, "broken:diffid", wrongDiffID(t))
	push(t, reg, "chart:v1", artifact(t))
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "<html><body>It works!</body></html>") // the client may leave
	}))
	t.Cleanup(web.Close)
	none := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(none.Close)
	readOnly := proxy(t, reg, func(w http.ResponseWriter, r *http.Request) bool {
		wrong := r.Method != http.MethodGet && r.Method != http.MethodHead
		if wrong {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errors":[{"code":"DENIED","message":"read only"}]}`) // the client may leave
		}
		return wrong
	}, nil)
	flipped := proxy(t, reg, nil, flipLayer)

	for _, c := range []struct {
		name string
		args []string
		says []string
	}{
		{"unknown tag", []string{host + "/app:v2"}, []string{"app:v2", "does not exist", "check"}},
		{"unknown repository", []string{host + "/nothing:v1"}, []string{"nothing:v1", "does not exist", "check"}},
		{"bad reference", []string{"Not An Image"}, []string{"Not An Image", "no image name such as"}},
		{"bad target", []string{app, "--to", "::"}, []string{"::", "no image name such as"}},
		{"target by digest", []string{app, "--to", host + "/x@sha256:" + strings.Repeat("a", 64)}, []string{"tag"}},
		{"itself", []string{app, "--to", app}, []string{"overwrite itself", "--to"}},
		{"bad platform", []string{app, "--platform", "x86"}, []string{"x86", "no platform such as"}},
		{"other platform", []string{app, "--platform", "plan9/mips"}, []string{"linux/amd64 only"}},
		{"nobody listens", []string{nobody(t) + "/app:v1"}, []string{"cannot be reached", "check"}},
		{"web server", []string{web.Listener.Addr().String() + "/app:v1"}, []string{"no OCI registry", "check the host"}},
		{"server of nothing", []string{none.Listener.Addr().String() + "/app:v1"}, []string{"no OCI registry", "check the host"}},
		{"no push right", []string{readOnly + "/app:v1", "--to", readOnly + "/app:v9"}, []string{"no right to push to", "docker login", "read only"}},
		{"layer damaged on the way", []string{flipped + "/app:v1", "--to", host + "/copy:v1"}, []string{"damaged", "sha256:", "try again"}},
		{"layer is no archive", []string{host + "/broken:gzip"}, []string{"sha256:", "build and push the image again"}},
		{"layer is not the config's", []string{host + "/broken:diffid"}, []string{"sha256:", "push the image again"}},
		{"long tag", []string{long}, []string{"does not fit", "at most 119", "--to"}},
		{"accelerated tag", []string{app + "-apparate"}, []string{"already", "convert the plain tag"}},
		{"accelerated image", []string{fast}, []string{"accelerated image already", "convert the image it was made from"}},
		{"no image", []string{host + "/chart:v1"}, []string{"no container image", "only images"}},
		{"target taken", []string{taken}, []string{"not made by apparate", "--to", "--force"}},
		{"no temporary directory", []string{app, "--to", host + "/tmp:v1", "--temp-dir", "/nowhere"}, []string{"--temp-dir", "/nowhere"}},
		{"no image named", nil, []string{"one image", "--help"}},
		{"unknown flag", []string{app, "--fast"}, []string{"--fast", "--help"}},
		{"bad output", []string{app, "--output", "xml"}, []string{"text or json", "--help"}},
		{"bad workers", []string{app, "--workers", "-1"}, []string{"above 0", "--help"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			unmoved(t, reg, func() {
				p.run(t, append([]string{"convert"}, c.args...)...).refused(t, c.says...)
			})
		})
	}
}

// Credentials: none, wrong ones.
func TestBadConvertLogin(t *testing.T) {
	for name, opt := range map[string]registry.Option{
		"basic": registry.WithBasic("user", "secret-password"),
		"token": registry.WithToken("user", "secret-password", 0),
	} {
		t.Run(name, func(t *testing.T) {
			reg := registry.New(t, opt)
			good := remote.WithAuth(&authn.Basic{Username: "user", Password: "secret-password"})
			app := push(t, reg, "app:v1", small(t), good)
			p := newPlace(t)
			unmoved(t, reg, func() {
				p.run(t, "convert", app).refused(t, "no right to pull", "docker login")
				p.login(t, reg.Host(), "user", "wrong-password")
				o := p.run(t, "convert", app)
				o.refused(t, "no right to pull", "docker login")
				if strings.Contains(o.errOut, "wrong-password") {
					t.Error("the line has the password")
				}
			}, good)
			p.login(t, reg.Host(), "user", "secret-password")
			if o := p.run(t, "convert", app); o.code != 0 {
				t.Errorf("with the right password: %s", o.errOut)
			}
		})
	}
}

// A disk without space for the converted layer.
func TestBadConvertDiskFull(t *testing.T) {
	reg := registry.New(t)
	img, _ := shellLess(t, 3<<20)
	app := push(t, reg, "app:v1", img)
	p := newPlace(t)
	tmpfs(t, p.mnt(), "1m")
	unmoved(t, reg, func() {
		p.run(t, "convert", app, "--temp-dir", p.mnt()).refused(t, "free some", "--temp-dir", "no space left on device")
	})
	if files, err := os.ReadDir(p.mnt()); err != nil || len(files) > 0 {
		t.Errorf("left in --temp-dir: %v %v", files, err)
	}
	if err := unix.Unmount(p.mnt(), 0); err != nil {
		t.Fatal(err)
	}
}

// An interrupted conversion ends at once and leaves nothing.
func TestBadConvertInterrupted(t *testing.T) {
	reg := registry.New(t)
	app := push(t, reg, "app:v1", small(t))
	m, err := read(t, app).Manifest()
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 10)
	slow := proxy(t, reg, func(_ http.ResponseWriter, r *http.Request) bool {
		layer := r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, m.Layers[0].Digest.String())
		if layer {
			asked <- struct{}{}
			<-r.Context().Done()
		}
		return layer
	}, nil)
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		p := newPlace(t)
		unmoved(t, reg, func() {
			cmd := p.command(t.Context(), "convert", slow+"/app:v1")
			var out, errOut bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errOut
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			<-asked
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // the exit code tells
			o := result(cmd, out.String(), errOut.String())
			o.refused(t, "interrupted")
			if o.code != 130 {
				t.Errorf("exit code %d, want 130", o.code)
			}
		})
	}
}

// shellLess is an image with one file of random bytes, /data/f000.
func shellLess(t *testing.T, size int) (v1.Image, []byte) {
	t.Helper()
	body := randomBytes(size)
	return image(t, layer(t, file{name: "data/", mode: 0o755}, file{name: "data/f000", mode: 0o644, body: body})), body
}

// tmpfs mounts a small file system at dir.
func tmpfs(t *testing.T, dir, size string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // gone when all went well
}

// flipLayer turns one byte of every layer around.
func flipLayer(r *http.Response) error {
	if r.Request.Method != http.MethodGet || !strings.Contains(r.Request.URL.Path, "/blobs/") || r.ContentLength < 2000 {
		return nil // a config is shorter
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 0xff
	r.Body = io.NopCloser(bytes.NewReader(b))
	return nil
}

// wrongDiffID is an image whose config names another archive.
func wrongDiffID(t *testing.T) v1.Image {
	t.Helper()
	img := small(t)
	cfg, err := img.ConfigFile()
	if err == nil {
		cfg = cfg.DeepCopy()
		cfg.RootFS.DiffIDs[0] = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("b", 64)}
		img, err = mutate.ConfigFile(img, cfg)
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// artifact is a manifest of something else than an image.
func artifact(t *testing.T) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.cncf.helm.config.v1+json")
	img, err := mutate.Append(img, mutate.Addendum{
		Layer: static.NewLayer([]byte("chart"), "application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}
