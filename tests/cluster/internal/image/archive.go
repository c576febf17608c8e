package image

import (
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Load stores the images of an archive: what 'docker save' writes, or an OCI layout
// in a tar file. It returns their names.
func (s *Store) Load(file string) ([]string, error) {
	if names, err := s.loadDocker(file); err == nil {
		return names, nil
	}
	names, err := s.loadOCI(file)
	if err != nil {
		return nil, fmt.Errorf("%s is neither a docker archive nor an OCI archive: %w", file, err)
	}
	return names, nil
}

func (s *Store) loadDocker(file string) ([]string, error) {
	manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(file) })
	if err != nil {
		return nil, err
	}
	var names []string
	for _, descriptor := range manifest {
		for _, tag := range descriptor.RepoTags {
			parsed, err := name.NewTag(tag)
			if err != nil {
				return nil, err
			}
			img, err := tarball.ImageFromPath(file, &parsed)
			if err != nil {
				return nil, err
			}
			if err := s.Put(tag, img, ""); err != nil {
				return nil, err
			}
			names = append(names, tag)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s has no tagged image", file)
	}
	return names, nil
}

func (s *Store) loadOCI(file string) ([]string, error) {
	dir, err := os.MkdirTemp("", "opensandbox-load-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if out, err := exec.Command("tar", "-xf", file, "-C", dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("tar: %w\n%s", err, out)
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, descriptor := range manifest.Manifests {
		ref := nameIn(descriptor)
		if ref == "" || !descriptor.MediaType.IsImage() {
			continue
		}
		img, err := index.Image(descriptor.Digest)
		if err != nil {
			return nil, err
		}
		if err := s.Put(ref, img, ""); err != nil {
			return nil, err
		}
		names = append(names, ref)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("its index names no image (annotation %s)", annotationName)
	}
	return names, nil
}

// nameIn prefers containerd's annotation: it always has the full name.
func nameIn(descriptor v1.Descriptor) string {
	if ref := descriptor.Annotations["io.containerd.image.name"]; ref != "" {
		return ref
	}
	return descriptor.Annotations[annotationName]
}
