package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
)

// A snapshotter that goes leaves no trace in containerd or in itself.
func TestStoreClear(t *testing.T) {
	versions(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		ref := w.push("app", w.image("one", "two", "three"))
		spaces := []string{"default", kubernetes}
		for _, ns := range spaces {
			w.pull(ns, "overlayfs", ref)
			w.pull(ns, Name, ref)
			w.run(ns, "images", "label", ref, "containerd.io/gc.ref.snapshot."+Name+"/1=x", "containerd.io/gc.ref.snapshot."+Name+"2=x")
			w.run(ns, "snapshots", "--snapshotter", Name, "prepare", "unpacking", w.top(ns))
			w.lease(ns, "only", Name)
			w.lease(ns, "both", Name, "overlayfs")
		}
		w.run(kubernetes, "containers", "create", "--snapshotter", Name, ref, "running")
		if err := w.Clear(ctx, Name); err == nil || !strings.Contains(err.Error(), "k8s.io/running") {
			t.Fatalf("cleared under a container: %v", err)
		}
		w.run(kubernetes, "snapshots", "--snapshotter", Name, "mounts", "/mnt", "running")
		if n := w.labelled(kubernetes, Name); n == 0 {
			t.Error("no content has a label of the snapshotter")
		}
		w.run(kubernetes, "containers", "rm", "running")
		for range 2 { // again is no error
			if err := w.Clear(ctx, Name); err != nil {
				t.Fatal(err)
			}
		}
		for _, ns := range spaces {
			equal(t, "snapshots in "+ns, w.keys(ns, Name))
			if n := len(w.keys(ns, "overlayfs")); n != 3 {
				t.Errorf("%s: %d snapshots of overlayfs", ns, n)
			}
			if ours, theirs := w.labelled(ns, Name), w.labelled(ns, "overlayfs"); ours != 0 || theirs == 0 {
				t.Errorf("%s: %d labels of ours, %d of overlayfs", ns, ours, theirs)
			}
			out := w.run(ns, "images", "ls", "name=="+ref)
			if strings.Contains(out, "snapshot."+Name+"/1") || !strings.Contains(out, "snapshot."+Name+"2=x") {
				t.Errorf("labels of images: %s", out)
			}
			equal(t, "leases in "+ns, strings.Fields(w.run(ns, "leases", "ls", "-q")), "both")
			r, err := leasesapi.NewLeasesClient(w.conn).ListResources(within(ctx, ns), &leasesapi.ListResourcesRequest{ID: "both"})
			if err != nil || len(r.GetResources()) != 1 || r.GetResources()[0].GetType() != "snapshots/overlayfs" {
				t.Errorf("%s: the lease has %v, %v", ns, r, err)
			}
		}
		left, err := os.ReadDir(filepath.Join(w.second, "snapshots"))
		if err != nil || len(left) > 0 {
			t.Errorf("left in the snapshotter: %v, %v", left, err)
		}
		// The image is of use as before.
		w.pull(kubernetes, Name, ref)
		equal(t, "unusable", w.unusable(Name))
	})
}

// top is the name of the image's highest snapshot of ours.
func (w *world) top(ns string) string {
	w.t.Helper()
	infos, err := w.snapshots(within(w.t.Context(), ns), Name)
	if err != nil || len(infos) == 0 {
		w.t.Fatalf("%v, %v", infos, err)
	}
	return leavesFirst(infos)[0].GetName()
}

func (w *world) keys(ns, snapshotter string) (keys []string) {
	w.t.Helper()
	infos, err := w.snapshots(within(w.t.Context(), ns), snapshotter)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, i := range infos {
		keys = append(keys, i.GetName())
	}
	return keys
}

// labelled counts the blobs with a label of the snapshotter.
func (w *world) labelled(ns, snapshotter string) (n int) {
	w.t.Helper()
	infos, err := w.contentInfos(within(w.t.Context(), ns))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, i := range infos {
		if without(i.GetLabels(), references(snapshotter)) != nil {
			n++
		}
	}
	return n
}

// lease makes a lease for a snapshot of each snapshotter.
func (w *world) lease(ns, id string, snapshotters ...string) {
	w.t.Helper()
	ctx, client := within(w.t.Context(), ns), leasesapi.NewLeasesClient(w.conn)
	if _, err := client.Create(ctx, &leasesapi.CreateRequest{ID: id}); err != nil {
		w.t.Fatal(err)
	}
	for _, s := range snapshotters {
		r := &leasesapi.Resource{ID: w.keys(ns, s)[0], Type: "snapshots/" + s}
		if _, err := client.AddResource(ctx, &leasesapi.AddResourceRequest{ID: id, Resource: r}); err != nil {
			w.t.Fatal(err)
		}
	}
}
