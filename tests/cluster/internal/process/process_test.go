package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func table(t *testing.T) *Table {
	dir := t.TempDir()
	tab := &Table{Run: filepath.Join(dir, "run"), Logs: filepath.Join(dir, "logs")}
	t.Cleanup(func() {
		for _, name := range tab.Names() {
			if err := tab.Stop(name, time.Second); err != nil {
				t.Error(err)
			}
		}
	})
	return tab
}

func sleeper(seconds string) *Spec {
	return &Spec{Name: "sleeper", Path: "/bin/sh", Args: []string{"-c", "echo ready; exec sleep " + seconds}}
}

func ensure(t *testing.T, tab *Table, spec *Spec, want Outcome) {
	t.Helper()
	got, err := tab.Ensure(spec)
	if err != nil || got != want {
		t.Fatalf("Ensure: got %q, %v, want %q", got, err, want)
	}
}

func TestEnsureStartsKeepsAndReplaces(t *testing.T) {
	tab := table(t)
	ensure(t, tab, sleeper("100"), Started)
	ensure(t, tab, sleeper("100"), Kept)
	ensure(t, tab, sleeper("200"), Replaced)
	if !tab.Alive("sleeper") {
		t.Fatal("sleeper is not alive after it was replaced")
	}
}

func TestEnsureRestartsWhatDied(t *testing.T) {
	tab := table(t)
	ensure(t, tab, sleeper("100"), Started)
	rec, err := tab.read("sleeper")
	if err != nil {
		t.Fatal(err)
	}
	if err := rec.stop(0); err != nil {
		t.Fatal(err)
	}
	ensure(t, tab, sleeper("100"), Restarted)
}

func TestStopLeavesAProcessThatGotTheIdLater(t *testing.T) {
	tab := table(t)
	stranger := exec.Command("/bin/sleep", "100")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stranger.Process.Kill(); _ = stranger.Wait() })
	if err := os.MkdirAll(tab.Run, 0o755); err != nil {
		t.Fatal(err)
	}
	record := fmt.Sprintf("%d 1 fingerprint\n", stranger.Process.Pid)
	if err := os.WriteFile(tab.recordPath("old"), []byte(record), 0o644); err != nil {
		t.Fatal(err)
	}
	if tab.Alive("old") {
		t.Error("a process with another start time counts as alive")
	}
	if err := tab.Stop("old", time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := startTimeOf(stranger.Process.Pid); err != nil {
		t.Errorf("the stranger was stopped: %v", err)
	}
}

func TestStopIsSafeToRepeat(t *testing.T) {
	tab := table(t)
	ensure(t, tab, sleeper("100"), Started)
	for range 2 {
		if err := tab.Stop("sleeper", time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if names := tab.Names(); len(names) != 0 {
		t.Errorf("got records %v, want none", names)
	}
}

func TestCheckShowsTheEndOfTheLog(t *testing.T) {
	tab := table(t)
	spec := &Spec{Name: "short", Path: "/bin/sh", Args: []string{"-c", "echo it broke; exit 3"}}
	if _, err := tab.Ensure(spec); err != nil && !strings.Contains(err.Error(), "died") {
		t.Fatal(err)
	}
	var err error
	for deadline := time.Now().Add(5 * time.Second); err == nil && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		err = tab.Check("short")
	}
	if err == nil || !strings.Contains(err.Error(), "it broke") {
		t.Errorf("got error %v, want the program's own words", err)
	}
}
