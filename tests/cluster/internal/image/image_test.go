package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestFullName(t *testing.T) {
	for ref, want := range map[string]string{
		"nginx":                         "docker.io/library/nginx:latest",
		"someone/tool:v1":               "docker.io/someone/tool:v1",
		"opensandbox.io/controller:dev": "opensandbox.io/controller:dev",
		"localhost:5000/x":              "localhost:5000/x:latest",
	} {
		if got, err := FullName(ref); err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", ref, got, err, want)
		}
	}
	if _, err := FullName("Not A Name"); err == nil {
		t.Error("a wrong name is accepted")
	}
}

func TestANewImageReplacesTheOldOne(t *testing.T) {
	store := Store{Dir: t.TempDir()}
	if key := store.Key("a"); key != "" {
		t.Errorf("in an empty store: got key %q, want none", key)
	}
	for _, key := range []string{"first", "second"} {
		img, err := random.Image(100, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Put("a", img, key); err != nil {
			t.Fatal(err)
		}
		if got := store.Key("docker.io/library/a:latest"); got != key {
			t.Errorf("got key %q, want %q", got, key)
		}
	}
	blobs, err := filepath.Glob(filepath.Join(store.Dir, "blobs", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(blobs) != 3 {
		t.Errorf("got %d blobs, want the second image's manifest, configuration and layer only", len(blobs))
	}
}

func compile(t *testing.T) string {
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "program")
	cmd := exec.Command("go", "build", "-o", program, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

func TestFromBinaryIsReproducible(t *testing.T) {
	binary := Binary{Path: compile(t), Entrypoint: "/manager", User: "65532"}
	var digests []string
	for range 2 {
		img, err := FromBinary(binary)
		if err != nil {
			t.Fatal(err)
		}
		file, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if file.Config.User != "65532" || file.Config.Entrypoint[0] != "/manager" || file.OS != "linux" {
			t.Errorf("got configuration %+v", file)
		}
		digest, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest.String())
	}
	if digests[0] != digests[1] {
		t.Errorf("got %v, want the same twice", digests)
	}
}

func TestADynamicProgramIsRefused(t *testing.T) {
	_, err := FromBinary(Binary{Path: "/bin/sh", Entrypoint: "/sh"})
	if err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("got %v, want advice", err)
	}
}

func TestLoad(t *testing.T) {
	img, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	docker := filepath.Join(dir, "docker.tar")
	tag, err := name.NewTag("example.com/one:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(docker, tag, img); err != nil {
		t.Fatal(err)
	}
	other := Store{Dir: filepath.Join(dir, "layout")}
	if err := other.Put("example.com/two:v2", img, ""); err != nil {
		t.Fatal(err)
	}
	oci := filepath.Join(dir, "oci.tar")
	if out, err := exec.Command("tar", "-C", other.Dir, "-cf", oci, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	store := Store{Dir: filepath.Join(dir, "store")}
	for file, want := range map[string]string{docker: "example.com/one:v1", oci: "example.com/two:v2"} {
		names, err := store.Load(file)
		if err != nil || len(names) != 1 || names[0] != want {
			t.Errorf("%s: got %v, %v, want %s", file, names, err, want)
		}
		if found, err := store.Find(want); err != nil || found == nil {
			t.Errorf("%s is not in the store: %v", want, err)
		}
	}
	if _, err := store.Load("/bin/sh"); err == nil || !strings.Contains(err.Error(), "neither a docker archive nor an OCI archive") {
		t.Errorf("got %v, want a clear refusal", err)
	}
}
