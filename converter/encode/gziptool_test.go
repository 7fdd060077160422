package encode

import (
	"bytes"
	"fmt"
	"os/exec"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/layerindex"
)

// TestGzipTool: the program gzip unpacks a layer with an index of several members.
func TestGzipTool(t *testing.T) {
	var ents []ent
	for i := range 4000 {
		ents = append(ents, reg(fmt.Sprintf("file%04d", i), noise(uint64(i), 20)))
	}
	blob, l := encoded(t, makeTar(t, ents...), Options{Level: 1})
	if l.IndexSize <= layerindex.MemberSize {
		t.Fatalf("an index of %d bytes is too short for this test", l.IndexSize)
	}
	c := exec.Command("gzip", "-dc")
	c.Stdin = bytes.NewReader(blob)
	plain, err := c.Output()
	if err != nil || digest.FromBytes(plain) != l.DiffID {
		t.Errorf("gzip: %v, %d bytes with digest %s, want %s", err, len(plain), digest.FromBytes(plain), l.DiffID)
	}
}
