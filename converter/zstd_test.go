package converter

import (
	"testing"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/encode"
)

// A zstd:chunked image says so, its layers are reused by the next one, and another format
// is another image.
func TestZstdChunked(t *testing.T) {
	l := newLab(t)
	layers := [][]byte{layerOf(t, "base", 100<<10), layerOf(t, "app", 50<<10)}
	l.push("app", "v1", img{layers: layers[:1]})
	as := Request{Source: "app:v1", Format: encode.ZstdChunked}
	l.mustConvert(as)
	m, _, _ := l.get("app", "v1-apparate")
	if got := dig(t, m, "annotations", image.AnnotationFormat); got != image.FormatZstd {
		t.Errorf("the format is %v", got)
	}
	d := dig(t, m, "layers").([]any)[0].(map[string]any)
	if d["mediaType"] != ociLayer+"+zstd" {
		t.Errorf("the layer is %v", d["mediaType"])
	}
	a := d["annotations"].(map[string]any)
	for _, k := range append(ourLayerKeys[:], maybeKeys[:]...) {
		if a[k] == nil {
			t.Errorf("the layer has no %s", k)
		}
	}
	if a[image.AnnotationZstdChecksum] != nil {
		t.Error("the layer has annotations of both dialects")
	}
	if res := l.mustConvert(as); !res.UpToDate {
		t.Errorf("once more: %+v", res)
	}
	l.push("app", "v1", img{layers: layers})
	if res := l.mustConvert(as); res.Reused != 1 || res.Converted != 1 {
		t.Errorf("with another layer: %+v", res)
	}
	m, _, _ = l.get("app", "v1-apparate")
	again := dig(t, m, "layers").([]any)[0].(map[string]any)
	if again["digest"] != d["digest"] || again["annotations"].(map[string]any)[image.AnnotationStargzZstdPosition] != a[image.AnnotationStargzZstdPosition] {
		t.Errorf("the reused layer is %v, it was %v", again, d)
	}
	if res := l.mustConvert(Request{Source: "app:v1"}); res.Reason != ReasonFormatChanged || res.Reused != 0 {
		t.Errorf("as eStargz: %+v", res)
	}
}
