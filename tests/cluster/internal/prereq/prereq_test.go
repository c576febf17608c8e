package prereq

import (
	"bytes"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// host is a machine that has some programs; installing a package adds the program
// that tests ask for, if the package's source has it.
func host(uid int, out *bytes.Buffer, programs ...string) *Host {
	h := &Host{OS: "linux", UID: uid, Out: out}
	h.LookPath = func(program string) (string, error) {
		if slices.Contains(programs, program) {
			return "/usr/bin/" + program, nil
		}
		return "", exec.ErrNotFound
	}
	h.Install = func(packages []string) error {
		for _, need := range []Need{Runc, Nft, Mount, Debootstrap} {
			if slices.Contains(packages, need.Package) {
				programs = append(programs, need.Program)
			}
		}
		return nil
	}
	return h
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want one with %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got error %q, want it to have %q", err, part)
		}
	}
}

func TestOtherSystemsAreRefused(t *testing.T) {
	h := host(0, nil)
	if err := h.Linux(); err != nil {
		t.Fatalf("on linux: got %v, want no error", err)
	}
	h.OS = "darwin"
	wantError(t, h.Linux(), "linux only", "this is darwin", "kind")
}

func TestRootIsAskedForWithTheReason(t *testing.T) {
	if err := host(0, nil).Root("a node"); err != nil {
		t.Fatalf("as root: got %v, want no error", err)
	}
	wantError(t, host(1000, nil).Root("a node"), "a node needs root", "user 1000", "sudo")
}

func TestPrograms(t *testing.T) {
	for _, test := range []struct {
		name      string
		uid       int
		has       []string
		needs     []Need
		wantOut   string
		wantError []string
	}{{
		name:  "nothing happens when all is there",
		has:   []string{"go", "runc", "nft"},
		needs: []Need{Go, Runc, Nft},
	}, {
		name:    "missing packages are installed and it says so",
		has:     []string{"go", "apt-get"},
		needs:   []Need{Go, Runc, Nft},
		wantOut: "installing runc nftables with apt-get\n",
	}, {
		name:      "without apt-get it names the package and the other way",
		has:       []string{"go"},
		needs:     []Need{Go, Runc},
		wantError: []string{"runc is not installed", "apt-get install runc", "github.com/opencontainers/runc"},
	}, {
		name:      "an ordinary user cannot install, and is told all that is missing",
		uid:       1000,
		has:       []string{"apt-get"},
		needs:     []Need{Runc, Nft},
		wantError: []string{"runc is not installed", "nft is not installed"},
	}, {
		name:      "what no package has is not installed",
		has:       []string{"apt-get"},
		needs:     []Need{Go},
		wantError: []string{"go is not installed: install Go from https://go.dev/dl"},
	}} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			err := host(test.uid, &out, test.has...).Programs(test.needs...)
			if len(test.wantError) > 0 {
				wantError(t, err, test.wantError...)
			} else if err != nil {
				t.Errorf("got error %v, want none", err)
			}
			if out.String() != test.wantOut {
				t.Errorf("got output %q, want %q", out.String(), test.wantOut)
			}
		})
	}
}

func TestAFailedInstallationIsReportedWithItsCause(t *testing.T) {
	h := host(0, new(bytes.Buffer), "apt-get")
	h.Install = func([]string) error { return errors.New("no network") }
	wantError(t, h.Programs(Runc), "no network", "runc is not installed")
}
