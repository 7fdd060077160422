package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestProfileByHand makes a profile with the program's own commands of a start that the
// node's daemon recorded. That another node uses it is shown in startup_test.go.
func TestProfileByHand(t *testing.T) {
	h := start(t, "--background-fetch-delay", "-1s")
	img, files := shell(t, 2, 300_000)
	ref := h.accelerate(t, "app:v1", img)
	record := []string{"profile", "record", ref, "--status-address", h.statusAddress()}
	if _, err := run(t, record...); err == nil || !strings.Contains(err.Error(), "has recorded no start of") {
		t.Errorf("before any start: %v", err)
	}
	h.pull(t, ref)
	if out := h.sh(t, ref, "reads", "cd /data && sha256sum *"); out != sums(files) {
		t.Errorf("wrong content: %s", out)
	}
	file := filepath.Join(t.TempDir(), "app.json")
	eventually(t, "the start is recorded", func() bool {
		_, err := run(t, append(record, "-o", file)...)
		return err == nil
	})
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"show", file}, []string{"chunks of 2 layers", "without a profile"}},
		{[]string{"push", ref, file}, []string{"has the profile sha256:", "of 1 start"}},
		{[]string{"push", ref, "--status-address", h.statusAddress()}, []string{"has this profile already"}},
		{[]string{"show", ref}, []string{"made of      1 start", "data/", "layer 2"}},
	} {
		out, err := run(t, append([]string{"profile"}, c.args...)...)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("profile %q does not say %q:\n%s", c.args, want, out)
			}
		}
		if strings.Contains(out, "of no use") {
			t.Errorf("profile %q has chunks of no layer:\n%s", c.args, out)
		}
	}
}
