package host

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// Clear removes all snapshots of a snapshotter from containerd and from the snapshotter
// itself, in all namespaces, and every label and lease that names it. Where a container
// uses it nothing is done, and that is an error.
func (s *Store) Clear(ctx context.Context, snapshotter string) error {
	if err := s.mustLoad(ctx, snapshotter); err != nil {
		return err
	}
	users, err := s.Users(ctx, snapshotter)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return fmt.Errorf("%d containers, of which one is %s, use the snapshotter %s: delete them first", len(users), users[0], snapshotter)
	}
	err = s.each(ctx, func(ctx context.Context, _ string) error {
		for _, f := range []func(context.Context, string) error{s.unlabelContent, s.unlabelImages, s.unlease, s.removeSnapshots} {
			if err := f(ctx, snapshotter); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.collect(ctx)
}

// references finds labels by which something keeps snapshots of a snapshotter.
func references(snapshotter string) *regexp.Regexp {
	return regexp.MustCompile(`^containerd\.io/gc\.(ref|bref|cond)\.snapshot\.` + regexp.QuoteMeta(snapshotter) + `(/|$)`)
}

// without returns a mask of the labels that match, nil if there are none: an update
// with the mask and no labels removes them.
func without(labels map[string]string, match *regexp.Regexp) *fieldmaskpb.FieldMask {
	var m *fieldmaskpb.FieldMask
	for k := range labels {
		if match.MatchString(k) {
			if m == nil {
				m = &fieldmaskpb.FieldMask{}
			}
			m.Paths = append(m.Paths, "labels."+k)
		}
	}
	return m
}

func (s *Store) unlabelContent(ctx context.Context, snapshotter string) error {
	infos, err := s.contentInfos(ctx)
	if err != nil {
		return err
	}
	match := references(snapshotter)
	for _, i := range infos {
		mask := without(i.GetLabels(), match)
		if mask == nil {
			continue
		}
		_, err := contentapi.NewContentClient(s.conn).Update(ctx, &contentapi.UpdateRequest{Info: &contentapi.Info{Digest: i.GetDigest()}, UpdateMask: mask})
		if err != nil && status.Code(err) != codes.NotFound {
			return s.failed("removing labels", err)
		}
	}
	return nil
}

func (s *Store) unlabelImages(ctx context.Context, snapshotter string) error {
	client := imagesapi.NewImagesClient(s.conn)
	r, err := client.List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return s.failed("listing images", err)
	}
	match := references(snapshotter)
	for _, i := range r.GetImages() {
		mask := without(i.GetLabels(), match)
		if mask == nil {
			continue
		}
		// The target is looked at, although the mask leaves it out.
		_, err := client.Update(ctx, &imagesapi.UpdateImageRequest{Image: &imagesapi.Image{Name: i.GetName(), Target: i.GetTarget()}, UpdateMask: mask})
		if err != nil && status.Code(err) != codes.NotFound {
			return s.failed("removing labels", err)
		}
	}
	return nil
}

// unlease takes the snapshots of a snapshotter out of all leases, and removes leases
// that are for nothing else.
func (s *Store) unlease(ctx context.Context, snapshotter string) error {
	client := leasesapi.NewLeasesClient(s.conn)
	leases, err := client.List(ctx, &leasesapi.ListRequest{})
	if err != nil {
		return s.failed("listing leases", err)
	}
	for _, l := range leases.GetLeases() {
		r, err := client.ListResources(ctx, &leasesapi.ListResourcesRequest{ID: l.GetID()})
		if status.Code(err) == codes.NotFound {
			continue
		}
		if err != nil {
			return s.failed("listing a lease", err)
		}
		ours := slices.DeleteFunc(slices.Clone(r.GetResources()), func(r *leasesapi.Resource) bool { return r.GetType() != "snapshots/"+snapshotter })
		if len(ours) > 0 && len(ours) == len(r.GetResources()) {
			if _, err := client.Delete(ctx, &leasesapi.DeleteRequest{ID: l.GetID()}); err != nil && status.Code(err) != codes.NotFound {
				return s.failed("removing a lease", err)
			}
			continue
		}
		for _, o := range ours {
			if _, err := client.DeleteResource(ctx, &leasesapi.DeleteResourceRequest{ID: l.GetID(), Resource: o}); err != nil && status.Code(err) != codes.NotFound {
				return s.failed("shortening a lease", err)
			}
		}
	}
	return nil
}

// removeSnapshots removes the snapshots of a namespace, leaves first.
func (s *Store) removeSnapshots(ctx context.Context, snapshotter string) error {
	client := snapshotsapi.NewSnapshotsClient(s.conn)
	const rounds = 5 // somebody may be making some meanwhile
	var last error
	for range rounds {
		infos, err := s.snapshots(ctx, snapshotter)
		if err != nil {
			return err
		}
		if len(infos) == 0 {
			return nil
		}
		last = nil
		for _, i := range leavesFirst(infos) {
			_, err := client.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: snapshotter, Key: i.GetName()})
			if err != nil && status.Code(err) != codes.NotFound {
				last = fmt.Errorf("snapshot %s: %w", i.GetName(), err)
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	if last == nil {
		return fmt.Errorf("snapshots of %s come again while they are removed: end what pulls or builds images with it", snapshotter)
	}
	return s.failed("removing the snapshots of "+snapshotter, last)
}

// leavesFirst sorts snapshots so that each comes before its parent.
func leavesFirst(infos []*snapshotsapi.Info) []*snapshotsapi.Info {
	parents := map[string]string{}
	for _, i := range infos {
		parents[i.GetName()] = i.GetParent()
	}
	depth := func(name string) (n int) {
		for ; name != "" && n <= len(infos); n++ {
			name = parents[name]
		}
		return n
	}
	depths := map[string]int{}
	for _, i := range infos {
		depths[i.GetName()] = depth(i.GetName())
	}
	slices.SortStableFunc(infos, func(a, b *snapshotsapi.Info) int {
		if d := depths[b.GetName()] - depths[a.GetName()]; d != 0 {
			return d
		}
		return strings.Compare(a.GetName(), b.GetName())
	})
	return infos
}

// collect has containerd collect garbage now: what it forgets it removes from the
// snapshotter only then. There is no call for it but the removal of something.
func (s *Store) collect(ctx context.Context) error {
	client := leasesapi.NewLeasesClient(s.conn)
	done := false
	return s.each(ctx, func(ctx context.Context, _ string) error {
		if done { // one collection is for all namespaces
			return nil
		}
		done = true
		r, err := client.Create(ctx, &leasesapi.CreateRequest{
			ID: "apparate-clear", Labels: map[string]string{"containerd.io/gc.expire": time.Now().Add(time.Hour).Format(time.RFC3339)},
		})
		if err != nil && status.Code(err) != codes.AlreadyExists {
			return s.failed("making a lease", err)
		}
		id := r.GetLease().GetID()
		if id == "" { // of one who was killed
			id = "apparate-clear"
		}
		if _, err := client.Delete(ctx, &leasesapi.DeleteRequest{ID: id, Sync: true}); err != nil {
			return s.failed("collecting garbage", err)
		}
		return nil
	})
}
