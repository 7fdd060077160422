package encode

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// TestLongTOC: a TOC that goes through the temporary file is the same as one
// that does not.
func TestLongTOC(t *testing.T) {
	var ents []ent
	for i := range 9 {
		e := reg(fmt.Sprint("file", i), []byte{byte(i)})
		e.PAXRecords = map[string]string{"SCHILY.xattr.user.long": string(noise(uint64(i), 600<<10))}
		ents = append(ents, e)
	}
	src := makeTar(t, ents...)
	blob, l := encoded(t, src, Options{Level: 1, TempDir: t.TempDir()})
	var toc estargz.JTOC
	b := bytes.TrimRight(gunzip(t, blob[l.TOCOffset:l.TOCOffset+l.TOCSize])[blockSize:], "\x00")
	if len(b) < spoolLimit {
		t.Fatalf("a TOC of %d bytes is too short for this test", len(b))
	}
	if err := json.Unmarshal(b, &toc); err != nil {
		t.Fatal(err)
	}
	if len(toc.Entries) != len(ents) || l.Entries != len(ents) {
		t.Errorf("%d entries in the TOC, %d reported, want %d", len(toc.Entries), l.Entries, len(ents))
	}
	if _, err := Encode(context.Background(), io.Discard, bytes.NewReader(src), Options{Level: 1, TempDir: "/nonexistent"}); err == nil {
		t.Error("a missing temporary directory was not noticed")
	}
}
