package source

import (
	"errors"
	"strings"
	"testing"

	"github.com/apparate/apparate/api/image"
)

const (
	digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	digestC = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
	digestD = "sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
)

// full are the labels of a layer of ours; edit changes them, "" removes one.
func full(edit ...string) map[string]string {
	m := map[string]string{
		LabelImageRef:             "docker.io/library/nginx:1-apparate",
		LabelLayerDigest:          digestA,
		LabelManifestDigest:       digestB,
		LabelDiffID:               digestC,
		image.AnnotationTOCDigest: digestD,
		image.AnnotationTOCOffset: "900",
		image.AnnotationTOCSize:   "49",
		image.AnnotationBlobSize:  "1000",
	}
	for i := 0; i < len(edit); i += 2 {
		if m[edit[i]] = edit[i+1]; edit[i+1] == "" {
			delete(m, edit[i])
		}
	}
	return m
}

func TestFromLabels(t *testing.T) {
	want := Layer{
		Ref: "docker.io/library/nginx:1-apparate", Manifest: digestB, Digest: digestA, DiffID: digestC,
		TOCDigest: digestD, TOCOffset: 900, TOCSize: 49, BlobSize: 1000,
	}
	if got, err := FromLabels(full()); err != nil || got != want {
		t.Errorf("FromLabels = %+v, %v; want %+v", got, err, want)
	}
	want.IndexDigest, want.IndexOffset, want.IndexSize = digestC, 949, 9
	if got, err := FromLabels(full(image.AnnotationIndexDigest, digestC, image.AnnotationIndexOffset, "949", image.AnnotationIndexSize, "9")); err != nil || got != want {
		t.Errorf("with an index = %+v, %v; want %+v", got, err, want)
	}
	remote := map[string]string{LabelRemoteRef: "r.test/a@" + digestB, LabelRemoteDigest: digestA, image.AnnotationTOCDigest: digestD}
	want = Layer{Ref: "r.test/a@" + digestB, Digest: digestA, TOCDigest: digestD}
	if got, err := FromLabels(remote); err != nil || got != want {
		t.Errorf("remote spelling = %+v, %v; want %+v", got, err, want)
	}
	// An ordinary layer: the error says so, the rest is there.
	got, err := FromLabels(full(image.AnnotationTOCDigest, "", image.AnnotationTOCOffset, "", image.AnnotationTOCSize, ""))
	if !errors.Is(err, ErrNoTOCDigest) || got.Digest != digestA || got.BlobSize != 1000 {
		t.Errorf("ordinary layer = %+v, %v", got, err)
	}
}

func TestFromLabelsBad(t *testing.T) {
	for name, c := range map[string]struct {
		edit []string
		is   error
		says string
	}{
		"no labels":      {[]string{LabelImageRef, ""}, ErrNoReference, ""},
		"bad reference":  {[]string{LabelImageRef, "A B"}, ErrBadLabel, LabelImageRef},
		"path escape":    {[]string{LabelImageRef, "r.test/../../x"}, ErrBadLabel, LabelImageRef},
		"no digest":      {[]string{LabelLayerDigest, ""}, ErrNoLayerDigest, ""},
		"bad digest":     {[]string{LabelLayerDigest, "sha256:../.."}, ErrBadLabel, LabelLayerDigest},
		"bad manifest":   {[]string{LabelManifestDigest, "x"}, ErrBadLabel, LabelManifestDigest},
		"bad TOC digest": {[]string{image.AnnotationTOCDigest, "md5:1"}, ErrBadLabel, image.AnnotationTOCDigest},
		"no number":      {[]string{image.AnnotationBlobSize, "many"}, ErrBadLabel, image.AnnotationBlobSize},
		"negative":       {[]string{image.AnnotationTOCOffset, "-1"}, ErrBadLabel, image.AnnotationTOCOffset},
		"too large":      {[]string{image.AnnotationTOCSize, "9223372036854775808"}, ErrBadLabel, image.AnnotationTOCSize},
		"offset alone":   {[]string{image.AnnotationTOCSize, ""}, ErrBadLabel, image.AnnotationTOCOffset},
		"TOC outside":    {[]string{image.AnnotationTOCOffset, "960"}, ErrBadLabel, "outside the blob"},
		"overflow":       {[]string{image.AnnotationTOCOffset, "9223372036854775807"}, ErrBadLabel, "outside the blob"},
		"index alone":    {[]string{image.AnnotationIndexDigest, digestA}, ErrBadLabel, image.AnnotationIndexSize},
		"index nameless": {[]string{image.AnnotationIndexOffset, "949", image.AnnotationIndexSize, "9"}, ErrBadLabel, image.AnnotationIndexDigest},
		"index nowhere":  {[]string{image.AnnotationIndexDigest, digestA, image.AnnotationIndexSize, "9"}, ErrBadLabel, image.AnnotationIndexOffset},
		"index outside":  {[]string{image.AnnotationIndexDigest, digestA, image.AnnotationIndexOffset, "999", image.AnnotationIndexSize, "9"}, ErrBadLabel, "outside the blob"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := FromLabels(full(c.edit...))
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) || got != (Layer{}) {
				t.Errorf("FromLabels = %+v, %v; want %v with %q", got, err, c.is, c.says)
			}
		})
	}
}

// The annotations of zstd:chunked, of both dialects, as a manifest has them.
func TestZstdAnnotations(t *testing.T) {
	for name, c := range map[string]struct {
		a    map[string]string
		want Layer
		ok   bool
	}{
		"storage": {map[string]string{image.AnnotationZstdChecksum: digestA, image.AnnotationZstdPosition: "900:50:123:1",
			"io.github.containers.zstd-chunked.tarsplit-position": "958:7:70"}, Layer{TOCDigest: digestA, TOCOffset: 900, TOCSize: 50}, true},
		"stargz": {map[string]string{image.AnnotationStargzZstdChecksum: digestA, image.AnnotationStargzZstdPosition: "900:50:123:1",
			image.AnnotationTOCDigest: digestB}, Layer{TOCDigest: digestB, TOCOffset: 900, TOCSize: 50}, true},
		"no position":  {map[string]string{image.AnnotationZstdChecksum: digestA}, Layer{TOCDigest: digestA}, true},
		"no numbers":   {map[string]string{image.AnnotationZstdPosition: "900:50"}, Layer{}, false},
		"words":        {map[string]string{image.AnnotationZstdPosition: "900:fifty:123:1"}, Layer{}, false},
		"negative":     {map[string]string{image.AnnotationZstdPosition: "-900:50:123:1"}, Layer{}, false},
		"nothing":      {map[string]string{image.AnnotationZstdPosition: "900:0:123:1"}, Layer{}, false},
		"overflow":     {map[string]string{image.AnnotationZstdPosition: "9223372036854775807:50:123:1"}, Layer{}, false},
		"bad checksum": {map[string]string{image.AnnotationZstdChecksum: "crc:1"}, Layer{}, false},
		"outside":      {map[string]string{image.AnnotationZstdPosition: "900:50:123:1", image.AnnotationBlobSize: "940"}, Layer{}, false},
	} {
		var l Layer
		err := l.annotate(c.a)
		if (err == nil) != c.ok || c.ok && l != c.want || err != nil && !errors.Is(err, ErrBadLabel) {
			t.Errorf("%s: %+v, %v", name, l, err)
		}
	}
}

func FuzzFromLabels(f *testing.F) {
	f.Add("docker.io/library/nginx:1", digestA, digestD, "900", "49", "1000", "")
	f.Add("r.test:5000/a/b@"+digestB, "sha512:00", "", "-1", "1e3", "", "-1:1:1:1")
	f.Add("", "", "", "9223372036854775807", "9223372036854775807", "9223372036854775807", "9223372036854775807:9223372036854775807:0:1")
	f.Add("docker.io/library/nginx:1", digestA, digestD, "", "", "1000", "900:49:5:1")
	f.Fuzz(func(t *testing.T, ref, layer, toc, offset, size, blob, position string) {
		l, err := FromLabels(full(LabelImageRef, ref, LabelLayerDigest, layer, image.AnnotationTOCDigest, toc,
			image.AnnotationTOCOffset, offset, image.AnnotationTOCSize, size, image.AnnotationBlobSize, blob,
			image.AnnotationZstdPosition, position))
		if err != nil {
			return
		}
		if l.Ref == "" || l.Digest.Validate() != nil || l.TOCDigest.Validate() != nil ||
			l.TOCOffset < 0 || l.TOCSize < 0 || l.BlobSize < 0 || l.TOCOffset+l.TOCSize < 0 {
			t.Errorf("accepted %+v", l)
		}
	})
}

// The TOC of an empty layer is all there is before the footer.
func TestEmptyLayer(t *testing.T) {
	got, err := FromLabels(full(image.AnnotationTOCOffset, "0", image.AnnotationTOCSize, "128", image.AnnotationBlobSize, "179"))
	if err != nil {
		t.Fatal(err)
	}
	if got.TOCOffset != 0 || got.TOCSize != 128 || got.TOCDigest == "" {
		t.Errorf("%+v: the TOC at offset 0 is lost", got)
	}
}
