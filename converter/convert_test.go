package converter

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/fault"
)

func TestConvertKeepsEverything(t *testing.T) {
	for name, i := range map[string]img{
		"OCI":            {layers: [][]byte{layerOf(t, "a", 1000), layerOf(t, "b", 700<<10)}, extra: map[string]any{"vendorField": map[string]any{"x": 1}}},
		"Docker":         {docker: true, layers: [][]byte{layerOf(t, "a", 1000)}},
		"zstd":           {layers: [][]byte{layerOf(t, "a", 1000)}, compress: zst, types: []string{ociLayer + "+zstd"}},
		"no compression": {docker: true, layers: [][]byte{layerOf(t, "a", 1000)}, types: []string{dockerLayer}},
		"empty layer":    {layers: [][]byte{make([]byte, 1024), layerOf(t, "a", 10)}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			src := l.push("app", "v1", i)
			res := l.mustConvert(Request{Source: "app:v1"})
			if res.Converted != len(i.layers) || res.UpToDate || res.Reason != ReasonTargetMissing {
				t.Errorf("result %+v", res)
			}
			l.mustCheck("app:v1-apparate", "")
			m, d, _ := l.get("app", "v1-apparate")
			if d != res.TargetDigest {
				t.Errorf("tag has %s, result says %s", d, res.TargetDigest)
			}
			for _, c := range []struct{ got, want any }{
				{m["mediaType"], ociManifest},
				{dig(t, m, "config", "mediaType"), ociConfig},
				{dig(t, m, "layers", 0, "mediaType"), ociLayer + "+gzip"},
				{dig(t, m, "annotations", image.AnnotationSourceDigest), src["digest"]},
				{dig(t, m, "annotations", image.AnnotationFormat), image.Format},
				{dig(t, m, "layers", 0, "annotations", "my.layer"), "kept"},
				{dig(t, m, "layers", 0, "annotations", "io.github.containers.zstd-chunked.manifest-position"), nil},
			} {
				if c.got != c.want {
					t.Errorf("got %v, want %v", c.got, c.want)
				}
			}
			if i.extra != nil && m["vendorField"] == nil {
				t.Error("an unknown field of the manifest is lost")
			}
			conf := string(l.getBlob("app", dig(t, m, "config", "digest").(string)))
			for _, s := range []string{`"<me & you>"`, `12345678901234567`, `"RUN a \u0026\u0026 b"`, `"docker_version":"19.03"`, `"more":1`} {
				if s = strings.ReplaceAll(s, `\u0026`, "&"); !strings.Contains(strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(conf, `\u0026`, "&"), `\u003c`, "<"), `\u003e`, ">"), s) {
					t.Errorf("config lost %s: %s", s, conf)
				}
			}
		})
	}
}

func TestSecondRunDoesNothing(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 1000)}})
	first := l.mustConvert(Request{Source: "app:v1"})
	l.requests("")
	var events []EventType
	second := l.mustConvert(Request{Source: "app:v1", Progress: func(e Event) { events = append(events, e.Type) }})
	if !second.UpToDate || second.TargetDigest != first.TargetDigest || !slices.Equal(events, []EventType{UpToDate}) {
		t.Errorf("second run: %+v, events %v", second, events)
	}
	if w := l.requests("PUT", "POST", "PATCH"); len(w) > 0 {
		t.Errorf("second run wrote: %v", w)
	}
	forced := l.mustConvert(Request{Source: "app:v1", Force: true})
	if forced.UpToDate || forced.Converted != 1 || forced.TargetDigest != first.TargetDigest {
		t.Errorf("forced run: %+v", forced)
	}
	if forced.BytesOut != 0 {
		t.Errorf("%d bytes were pushed that the registry had", forced.BytesOut)
	}
}

func TestObserveWritesNothing(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 1000)}})
	ask := func() Observation {
		t.Helper()
		l.requests("")
		o, err := l.c.Observe(context.Background(), Request{Source: l.host + "/app:v1"})
		if err != nil {
			t.Fatal(err)
		}
		if w := l.requests("PUT", "POST", "PATCH", "DELETE"); len(w) > 0 {
			t.Errorf("Observe wrote: %v", w)
		}
		return o
	}
	if o := ask(); o.UpToDate || o.Reason != ReasonTargetMissing || o.Target != l.host+"/app:v1-apparate" {
		t.Errorf("before: %+v", o)
	}
	l.mustConvert(Request{Source: "app:v1"})
	if o := ask(); !o.UpToDate || o.Reason != ReasonUpToDate {
		t.Errorf("after: %+v", o)
	}
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "b", 1000)}})
	if o := ask(); o.UpToDate || o.Reason != ReasonSourceChanged {
		t.Errorf("after another push: %+v", o)
	}
}

func TestLayersAreReused(t *testing.T) {
	l := newLab(t)
	base := layerOf(t, "base", 100<<10)
	l.push("app", "v1", img{layers: [][]byte{base, layerOf(t, "one", 10)}})
	l.mustConvert(Request{Source: "app:v1"})
	l.push("app", "v1", img{layers: [][]byte{base, layerOf(t, "two", 10)}})
	res := l.mustConvert(Request{Source: "app:v1"})
	if res.Reused != 1 || res.Converted != 1 {
		t.Errorf("result %+v", res)
	}
	l.mustCheck("app:v1-apparate", "")
}

// An image of an older format is converted again when asked for, and its layers are not
// taken over: they lack what the newer format has.
func TestOldFormatIsConvertedAgain(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "base", 100<<10)}})
	l.mustConvert(Request{Source: "app:v1"})
	m, _, _ := l.get("app", "v1-apparate")
	dig(t, m, "annotations").(map[string]any)[image.AnnotationFormat] = "estargz/1"
	d := dig(t, m, "layers").([]any)[0].(map[string]any)["annotations"].(map[string]any)
	for _, k := range maybeKeys[:3] {
		if d[k] == nil {
			t.Errorf("a layer has no %s: %v", k, d)
		}
		delete(d, k)
	}
	l.put("app", "v1-apparate", ociManifest, m)
	res := l.mustConvert(Request{Source: "app:v1"})
	if res.Reason != ReasonFormatChanged || res.Reused != 0 || res.Converted != 1 {
		t.Errorf("result %+v", res)
	}
	m, _, _ = l.get("app", "v1-apparate")
	d = dig(t, m, "layers").([]any)[0].(map[string]any)["annotations"].(map[string]any)
	for _, k := range maybeKeys[:3] {
		if d[k] == nil {
			t.Errorf("a layer that was converted again has no %s: %v", k, d)
		}
	}
	l.mustCheck("app:v1-apparate", "")
}

// index pushes an index of two platforms that share a layer, an attestation for
// the first and a thing that is no image.
func (l *lab) index(mediaType string) (amd, arm, att map[string]any) {
	l.t.Helper()
	shared := layerOf(l.t, "shared", 5000)
	amd = l.push("app", "", img{docker: mediaType == dockerList, layers: [][]byte{shared, layerOf(l.t, "amd", 10)}})
	arm = l.push("app", "", img{docker: mediaType == dockerList, arch: "arm64", layers: [][]byte{shared, layerOf(l.t, "arm", 10)}})
	att = l.put("app", "", ociManifest, map[string]any{
		"schemaVersion": 2, "mediaType": ociManifest, "config": l.blob("app", ociConfig, []byte(`{"architecture":"unknown","os":"unknown","rootfs":{"type":"layers","diff_ids":[]}}`)),
		"layers": []any{l.blob("app", "application/vnd.in-toto+json", []byte(`{"_type":"statement"}`))},
	})
	att["platform"] = map[string]any{"os": "unknown", "architecture": "unknown"}
	att["annotations"] = map[string]string{annotationReferenceType: "attestation-manifest", annotationReferenceDigest: amd["digest"].(string)}
	other := l.put("app", "", ociManifest, map[string]any{
		"schemaVersion": 2, "mediaType": ociManifest, "artifactType": "application/vnd.example", "config": l.blob("app", "application/vnd.oci.empty.v1+json", []byte(`{}`)),
		"layers": []any{l.blob("app", "application/vnd.wasm", []byte("wasm"))},
	})
	l.put("app", "v1", mediaType, map[string]any{"schemaVersion": 2, "mediaType": mediaType, "manifests": []any{amd, arm, att, other}})
	return amd, arm, att
}

func TestIndexStaysIndex(t *testing.T) {
	for _, mt := range []string{ociIndex, dockerList} {
		for _, to := range []string{"", "elsewhere/app:fast"} {
			t.Run(mt+" "+to, func(t *testing.T) {
				l := newLab(t)
				amd, _, att := l.index(mt)
				res := l.mustConvert(Request{Source: "app:v1", Target: to})
				if res.Layers != 3 || res.Converted != 3 || !slices.Equal(res.Platforms, []string{"linux/amd64", "linux/arm64"}) {
					t.Errorf("result %+v", res)
				}
				repo, tag := "app", "v1-apparate"
				if to != "" {
					repo, tag = "elsewhere/app", "fast"
				}
				m, _, _ := l.get(repo, tag)
				if m["mediaType"] != ociIndex || len(m["manifests"].([]any)) != 4 {
					t.Errorf("index %v", m)
				}
				first := dig(t, m, "manifests", 0, "digest")
				if first == amd["digest"] || dig(t, m, "manifests", 2, "digest") != att["digest"] {
					t.Errorf("manifests %v", m["manifests"])
				}
				if got := dig(t, m, "manifests", 2, "annotations", annotationReferenceDigest); got != first {
					t.Errorf("the attestation is about %v, want %v", got, first)
				}
				if _, _, ok := l.get(repo, att["digest"].(string)); !ok {
					t.Error("the attestation was not copied")
				}
				source := ""
				if to != "" {
					source = "app:v1"
				}
				l.mustCheck(repo+":"+tag, source)
				if again := l.mustConvert(Request{Source: "app:v1", Target: to}); !again.UpToDate {
					t.Errorf("second run: %+v", again)
				}
			})
		}
	}
}

func TestPlatforms(t *testing.T) {
	l := newLab(t)
	l.index(ociIndex)
	res := l.mustConvert(Request{Source: "app:v1", Platforms: []string{"linux/amd64"}})
	m, _, _ := l.get("app", "v1-apparate")
	if len(m["manifests"].([]any)) != 2 || res.Layers != 2 {
		t.Errorf("want one image and its attestation, got %v", m["manifests"])
	}
	if r := l.mustCheck("app:v1-apparate", ""); len(r.Missing) == 0 || r.Missing[0] != "linux/arm64" {
		t.Errorf("missing %v", r.Missing)
	}
	if again := l.mustConvert(Request{Source: "app:v1", Platforms: []string{"linux/amd64"}}); !again.UpToDate {
		t.Errorf("again: %+v", again)
	}
	all := l.mustConvert(Request{Source: "app:v1"})
	if all.Reason != ReasonPlatformsChanged || all.Reused != 2 || all.Converted != 1 {
		t.Errorf("all: %+v", all)
	}
	_, err := l.convert(Request{Source: "app:v1", Platforms: []string{"plan9/mips"}})
	wantKind(t, err, fault.NoPlatform, "linux/arm64")
	_, err = l.convert(Request{Source: "app:v1", Platforms: []string{"linux"}})
	wantKind(t, err, fault.BadName, "platform")
	l.push("single", "v1", img{layers: [][]byte{layerOf(t, "a", 1)}})
	_, err = l.convert(Request{Source: "single:v1", Platforms: []string{"linux/arm64"}})
	wantKind(t, err, fault.NoPlatform, "linux/amd64 only")
}

func TestOtherRepositoryAndMount(t *testing.T) {
	l := newLab(t)
	// A layer that cannot be accelerated is mounted, not sent.
	odd := tarWith(t, "sub/../../x", []byte("odd"))
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 1000), odd}})
	res := l.mustConvert(Request{Source: "app:v1", Target: "other/name:fast"})
	if res.Copied != 1 || res.Converted != 1 {
		t.Errorf("result %+v", res)
	}
	if r := l.mustCheck("other/name:fast", "app:v1"); r.Copied != 1 {
		t.Errorf("report %+v", r)
	}
	if res.BytesOut >= res.TargetSize {
		t.Errorf("%d of %d bytes were sent: the copied layer was not mounted", res.BytesOut, res.TargetSize)
	}
	_, err := l.convert(Request{Source: "app:v1", Target: "app:v1"})
	wantKind(t, err, fault.BadName, "overwrite itself")
}

func TestForeignLayers(t *testing.T) {
	l := newLab(t)
	foreign := map[string]any{"mediaType": dockerForeign + ".gzip", "size": 5, "digest": "sha256:" + strings.Repeat("ab", 32), "urls": []string{"https://example.com/x"}}
	good := layerOf(t, "a", 1000)
	conf := `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("cd", 32) + `","` + digestOf(good) + `"]}}`
	l.put("app", "v1", dockerManifest, map[string]any{
		"schemaVersion": 2, "mediaType": dockerManifest, "config": l.blob("app", dockerConfig, []byte(conf)),
		"layers": []any{foreign, l.blob("app", dockerLayer+".gzip", gz(t, good))},
	})
	res := l.mustConvert(Request{Source: "app:v1"})
	if res.Copied != 1 || res.Converted != 1 {
		t.Errorf("result %+v", res)
	}
	m, _, _ := l.get("app", "v1-apparate")
	if dig(t, m, "layers", 0, "digest") != foreign["digest"] || dig(t, m, "layers", 0, "urls", 0) != "https://example.com/x" ||
		dig(t, m, "layers", 0, "mediaType") != ociForeign+"+gzip" {
		t.Errorf("foreign layer %v", dig(t, m, "layers", 0))
	}
	l.mustCheck("app:v1-apparate", "")
}

func TestRefusals(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 1000)}})
	l.mustConvert(Request{Source: "app:v1"})
	l.put("chart", "v1", ociManifest, map[string]any{"schemaVersion": 2, "mediaType": ociManifest,
		"config": l.blob("chart", "application/vnd.cncf.helm.config.v1+json", []byte("{}")),
		"layers": []any{l.blob("chart", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", []byte("x"))}})
	l.put("sig", "v1", ociManifest, map[string]any{"schemaVersion": 2, "mediaType": ociManifest,
		"config": l.blob("sig", ociConfig, []byte("{}")),
		"layers": []any{l.blob("sig", "application/vnd.dev.cosign.simplesigning.v1+json", []byte("x"))}})
	l.put("list", "v1", ociIndex, map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []any{}})
	l.push("taken", "v1", img{layers: [][]byte{layerOf(t, "a", 1000)}})
	l.push("taken", "v1-apparate", img{layers: [][]byte{layerOf(t, "mine", 1000)}})
	l.push("long", strings.Repeat("x", 125), img{layers: [][]byte{layerOf(t, "a", 1000)}})
	for _, c := range []struct {
		r    Request
		kind fault.Kind
		part string
	}{
		{Request{Source: "app:v2"}, fault.NotFound, "does not exist"},
		{Request{Source: "nothing/here:v1"}, fault.NotFound, "does not exist"},
		{Request{Source: "app:v1-apparate"}, fault.AlreadyAccelerated, "already"},
		{Request{Source: "app:v1-apparate", Target: "app:other"}, fault.AlreadyAccelerated, "already"},
		{Request{Source: "chart:v1"}, fault.NotImage, "helm"},
		{Request{Source: "sig:v1"}, fault.NotImage, "cosign"},
		{Request{Source: "list:v1"}, fault.NotImage, "without a container image"},
		{Request{Source: "taken:v1"}, fault.TargetTaken, "--force"},
		{Request{Source: "long:" + strings.Repeat("x", 125)}, fault.TagTooLong, "--to"},
		{Request{Source: "App:v1"}, fault.BadName, "no image name"},
		{Request{Source: "app@sha256:" + strings.Repeat("0", 64)}, fault.BadName, "--to"},
		{Request{Source: "app:v1", Target: "app@sha256:" + strings.Repeat("0", 64)}, fault.BadName, "tag"},
	} {
		_, before, _ := l.get("taken", "v1-apparate")
		_, err := l.convert(c.r)
		wantKind(t, err, c.kind, c.part)
		if _, now, _ := l.get("taken", "v1-apparate"); now != before {
			t.Errorf("%+v moved a tag", c.r)
		}
	}
	l.mustConvert(Request{Source: "taken:v1", Force: true})
	l.mustCheck("taken:v1-apparate", "")
}

func TestByDigest(t *testing.T) {
	l := newLab(t)
	old := l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 1000)}})
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "b", 1000)}})
	// The tag has moved on; the digest says which image is meant.
	res := l.mustConvert(Request{Source: "app:v1@" + old["digest"].(string)})
	if res.SourceDigest != old["digest"] || !strings.HasSuffix(res.Target, "app:v1-apparate") {
		t.Errorf("result %+v", res)
	}
	l.mustCheck("app:v1-apparate", "")
}

func TestEvents(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 1000), layerOf(t, "b", 1000)}})
	var lines []string
	l.mustConvert(Request{Source: "app:v1", Progress: func(e Event) {
		b, err := json.Marshal(e)
		if err != nil {
			t.Error(err)
		}
		if e.Type != LayerProgress {
			lines = append(lines, string(e.Type))
		}
		if !strings.Contains(string(b), `"image":"`+l.host+`/app:v1","target":"`+l.host+`/app:v1-apparate"`) || e.Time.IsZero() {
			t.Errorf("event %s", b)
		}
	}})
	slices.Sort(lines[1:5])
	want := "started layer-done layer-done layer-started layer-started manifest-pushed tagged"
	if got := strings.Join(lines, " "); got != want {
		t.Errorf("events %s, want %s", got, want)
	}
	var last Event
	_, err := l.convert(Request{Source: "app:v9", Progress: func(e Event) { last = e }})
	if last.Type != Failed || last.Reason != string(fault.NotFound) || err == nil || last.Error != err.Error() {
		t.Errorf("last event %+v, error %v", last, err)
	}
}

func TestTagMovesLast(t *testing.T) {
	l := newLab(t)
	l.index(ociIndex)
	l.requests("")
	l.mustConvert(Request{Source: "app:v1"})
	writes := l.requests("PUT", "POST", "PATCH")
	for i, w := range writes {
		if strings.HasSuffix(w, "/manifests/v1-apparate") != (i == len(writes)-1) {
			t.Errorf("write %d of %d: %s", i+1, len(writes), w)
		}
	}
}

func TestSuperseded(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 1000)}})
	moved := false
	_, err := l.convert(Request{Source: "app:v1", Progress: func(e Event) {
		if e.Type == LayerDone && !moved {
			moved = true
			l.push("app", "v1", img{layers: [][]byte{layerOf(t, "b", 1000)}})
		}
	}})
	wantKind(t, err, fault.Superseded, "again")
	if !fault.Temporary(err) {
		t.Error("not temporary")
	}
	if _, _, ok := l.get("app", "v1-apparate"); ok {
		t.Error("the tag was put all the same")
	}
}

func TestTargetTakenMeanwhile(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 1000)}})
	var theirs map[string]any
	_, err := l.convert(Request{Source: "app:v1", Progress: func(e Event) {
		if e.Type == LayerDone {
			theirs = l.push("app", "v1-apparate", img{layers: [][]byte{layerOf(t, "mine", 1000)}})
		}
	}})
	wantKind(t, err, fault.TargetTaken, "during the conversion")
	if _, d, _ := l.get("app", "v1-apparate"); d != theirs["digest"] {
		t.Error("somebody's tag was overwritten")
	}
}

func TestCancel(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 3<<20)}})
	ctx, cancel := context.WithCancel(context.Background())
	l.setHook(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch {
			cancel()
		}
		return false
	})
	_, err := l.c.Convert(ctx, Request{Source: l.host + "/app:v1"})
	wantKind(t, err, fault.Canceled, "stopped")
	if !isCanceled(err) {
		t.Errorf("the cause is lost: %v", err)
	}
	if _, _, ok := l.get("app", "v1-apparate"); ok {
		t.Error("the tag was put all the same")
	}
}
