package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	api "github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/test/registry"
)

// An accelerated image with one thing changed, and everything that describes
// its layers in order: check names the entry.
func TestBadCheckTampered(t *testing.T) {
	reg := registry.New(t)
	files := func() []file {
		return []file{{name: "etc/", mode: 0o755}, {name: "etc/passwd", mode: 0o644, body: []byte("root:x:0:0\n")},
			{name: "bin/", mode: 0o755}, {name: "bin/tool", mode: 0o755, body: randomBytes(300_000)}, {name: "bin/sh", link: "tool"}}
	}
	app := push(t, reg, "app:v1", image(t, layer(t, files()...)))
	accelerated := app + "-apparate"
	if _, err := run(t, "convert", app); err != nil {
		t.Fatal(err)
	}
	good := read(t, accelerated)
	for _, c := range []struct {
		name   string
		change func(f []file) []file
		says   []string
	}{
		{"content", func(f []file) []file { f[1].body = []byte("root::0:0:\n"); return f }, []string{`"etc/passwd"`, "content"}},
		{"one byte of many", func(f []file) []file { f[3].body[270_000]++; return f }, []string{`"bin/tool"`, "content"}},
		{"mode", func(f []file) []file { f[3].mode = 0o4755; return f }, []string{`"bin/tool"`, "mode"}},
		{"link", func(f []file) []file { f[4].link = "/tmp/tool"; return f }, []string{`"bin/sh"`, "link"}},
		{"one more", func(f []file) []file { return append(f, file{name: "bin/more", mode: 0o755, body: []byte("x")}) }, []string{`"bin/more"`}},
		{"one less", func(f []file) []file { return f[:4] }, []string{`"bin/sh"`}},
		{"another name", func(f []file) []file { f[4].name = "bin/ash"; return f }, []string{`"bin/sh"`, "bin/ash"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			other := push(t, reg, "other:v1", image(t, layer(t, c.change(files())...)))
			if _, err := run(t, "convert", other); err != nil {
				t.Fatal(err)
			}
			push(t, reg, "app:v1-apparate", claiming(t, read(t, other+"-apparate"), good))
			unmoved(t, reg, func() {
				o := p.run(t, "check", accelerated)
				o.refused(t, "differs from", "app@sha256:")
				for _, w := range c.says {
					if !strings.Contains(o.out, w) {
						t.Errorf("the report lacks %q: %s", w, o.out)
					}
				}
				o = p.run(t, "check", "--output", "json", accelerated)
				var report struct{ Total int }
				if err := json.Unmarshal([]byte(o.out), &report); err != nil || report.Total == 0 || o.code != 1 {
					t.Errorf("json: code %d, %v: %s", o.code, err, o.out)
				}
			})
		})
	}
	push(t, reg, "app:v1-apparate", good)
	if o := newPlace(t).run(t, "check", accelerated); o.code != 0 || !strings.Contains(o.out, "equals") {
		t.Errorf("the untouched image: %d %s %s", o.code, o.out, o.errOut)
	}
}

// claiming is the accelerated image img with the words of another about where it
// and its layer come from.
func claiming(t *testing.T, img, other v1.Image) v1.Image {
	t.Helper()
	m, err := other.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	mine, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	notes := mine.Layers[0].Annotations
	notes[api.AnnotationLayerSource] = m.Layers[0].Annotations[api.AnnotationLayerSource]
	oci := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	out, err := mutate.Append(oci, mutate.Addendum{Layer: layers[0], Annotations: notes, MediaType: mine.Layers[0].MediaType})
	if err == nil {
		cfg = cfg.DeepCopy()
		out, err = mutate.ConfigFile(out, cfg)
	}
	if err != nil {
		t.Fatal(err)
	}
	annotated, ok := mutate.Annotations(out, m.Annotations).(v1.Image)
	if !ok {
		t.Fatal("no image")
	}
	return annotated
}

// What cannot be checked.
func TestBadCheck(t *testing.T) {
	reg := registry.New(t)
	app := push(t, reg, "app:v1", small(t))
	if _, err := run(t, "convert", app); err != nil {
		t.Fatal(err)
	}
	accelerated := app + "-apparate"
	moved := push(t, reg, "elsewhere:v1-apparate", read(t, accelerated))
	broken := proxy(t, reg, nil, flipLayer)
	for _, c := range []struct {
		name string
		args []string
		says []string
	}{
		{"ordinary image", []string{app}, []string{"no accelerated image"}},
		{"unknown image", []string{app + "-none"}, []string{"does not exist", "check"}},
		{"source elsewhere", []string{moved}, []string{"not in the same repository", "--source"}},
		{"other source", []string{accelerated, "--source", reg.Host() + "/app:v0"}, []string{"app:v0", "does not exist"}},
		{"nobody listens", []string{nobody(t) + "/app:v1-apparate"}, []string{"cannot be reached", "check"}},
		{"layer damaged on the way", []string{broken + "/app:v1-apparate"}, []string{"damaged", "sha256:", "try again"}},
		{"no temporary directory", []string{accelerated, "--temp-dir", "/nowhere"}, []string{"--temp-dir", "/nowhere"}},
		{"bad reference", []string{"A B"}, []string{"no image name such as"}},
		{"no image named", nil, []string{"one image", "--help"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			unmoved(t, reg, func() { p.run(t, append([]string{"check"}, c.args...)...).refused(t, c.says...) })
		})
	}
}
