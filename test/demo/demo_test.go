package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestJudge proves that the demo fails when a start was not lazy, and says why.
func TestJudge(t *testing.T) {
	good := imageResult{
		Name: "x", SizeBytes: 100, Ratio: 2, Eager: startResult{Seconds: 2, Bytes: 100, RootMount: "overlay on ext4"},
		Lazy: lazyResult{startResult{Seconds: 1, Bytes: 30, RootMount: "overlay on erofs"}, 0.3},
	}
	if err := (results{Images: []imageResult{good}}).judge(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*imageResult){
		"half or more": func(i *imageResult) { i.Lazy.Fraction = 0.5 },
		"no sooner":    func(i *imageResult) { i.Lazy.Seconds = 2 },
		"was not lazy": func(i *imageResult) { i.Lazy.RootMount = "overlay on ext4" },
	} {
		bad := good
		spoil(&bad)
		if err := (results{Images: []imageResult{good, bad}}).judge(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("judged %v, want %q", err, want)
		}
	}
}

// TestWrite fixes the shape of out/demo.json.
func TestWrite(t *testing.T) {
	r := results{Images: []imageResult{{Name: "x", Lazy: lazyResult{startResult{Seconds: 1, RootMount: "overlay on erofs"}, 0.25}}}}
	r.Convert.add(3e6, 1e9)
	r.Convert.finish()
	file := filepath.Join(t.TempDir(), "out", "demo.json")
	if err := r.write(file); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Images []struct {
			Lazy map[string]any
		}
		Convert map[string]float64
	}
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if got.Images[0].Lazy["fraction"] != 0.25 || got.Images[0].Lazy["root_mount"] != "overlay on erofs" || got.Convert["mb_per_s"] != 3 {
		t.Errorf("written: %s", text)
	}
}
