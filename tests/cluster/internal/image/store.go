// Package image builds container images without a container engine and keeps them
// on disk, where the cluster's registry serves them.
package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
	"golang.org/x/sys/unix"
)

// Annotations of an image in the store's index.
const (
	annotationName = "org.opencontainers.image.ref.name"
	// annotationKey identifies what the image was made of.
	annotationKey = "io.opensandbox.cluster.key"
)

// Store is a folder of images, an OCI layout. Several processes may use it at once.
type Store struct {
	Dir string
}

// FullName spells an image's name as containerd does: nginx is
// docker.io/library/nginx:latest.
func FullName(ref string) (string, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return "", err
	}
	full := parsed.Name()
	if rest, ok := strings.CutPrefix(full, name.DefaultRegistry+"/"); ok {
		full = "docker.io/" + rest
	}
	return full, nil
}

// Put stores an image under a name, in place of the image that had the name before. The key
// may be empty.
func (s *Store) Put(ref string, img v1.Image, key string) error {
	full, err := FullName(ref)
	if err != nil {
		return err
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	path, err := layout.FromPath(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		path, err = layout.Write(s.Dir, empty.Index)
	}
	if err != nil {
		return err
	}
	named := match.Annotation(annotationName, full)
	annotations := map[string]string{annotationName: full, annotationKey: key}
	if err := path.ReplaceImage(img, named, layout.WithAnnotations(annotations)); err != nil {
		return fmt.Errorf("store image %s: %w", full, err)
	}
	return collectGarbage(path)
}

// Find returns the descriptor of a stored image, or nil.
func (s *Store) Find(full string) (*v1.Descriptor, error) {
	path, err := layout.FromPath(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	index, err := path.ImageIndex()
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, descriptor := range manifest.Manifests {
		if descriptor.Annotations[annotationName] == full {
			return &descriptor, nil
		}
	}
	return nil, nil
}

// Key returns the key that the image was stored with, or nothing.
func (s *Store) Key(ref string) string {
	full, err := FullName(ref)
	if err != nil {
		return ""
	}
	descriptor, err := s.Find(full)
	if err != nil || descriptor == nil {
		return ""
	}
	return descriptor.Annotations[annotationKey]
}

// BlobPath is where a manifest, configuration or layer is on disk.
func (s *Store) BlobPath(digest v1.Hash) string {
	return filepath.Join(s.Dir, "blobs", digest.Algorithm, digest.Hex)
}

func (s *Store) lock() (unlock func(), err error) {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(s.Dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		file.Close()
		return nil, err
	}
	return func() { file.Close() }, nil
}

// collectGarbage removes what no image uses any more: each new build of an image leaves
// the layers of the last one behind.
func collectGarbage(path layout.Path) error {
	unused, err := path.GarbageCollect()
	if err != nil {
		return err
	}
	for _, digest := range unused {
		if err := path.RemoveBlob(digest); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
