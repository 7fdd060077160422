package image

import (
	"strings"
	"testing"
)

func TestAcceleratedTag(t *testing.T) {
	longest := strings.Repeat("x", MaxTagLength-len(Suffix))
	for tag, want := range map[string]string{"v1": "v1-apparate", "latest": "latest-apparate", longest: longest + Suffix} {
		if got, err := AcceleratedTag(tag); err != nil || got != want {
			t.Errorf("AcceleratedTag(%q) = %q, %v", tag, got, err)
		}
	}
	for tag, hint := range map[string]string{"": "--to", "v1-apparate": "already ends in", longest + "x": "at most 119 characters"} {
		if got, err := AcceleratedTag(tag); err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("AcceleratedTag(%q) = %q, %v; the error should say %q", tag, got, err, hint)
		}
	}
	if IsAcceleratedTag("v1") || !IsAcceleratedTag("v1-apparate") {
		t.Error("IsAcceleratedTag is wrong")
	}
}
