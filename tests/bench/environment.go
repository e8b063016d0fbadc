package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

// told are the modules whose versions the results name.
var told = []string{
	"gorm.io/gorm", "gorm.io/driver/sqlite", "gorm.io/driver/postgres", "gorm.io/driver/mysql",
	"github.com/mattn/go-sqlite3", "github.com/jackc/pgx/v5", "github.com/go-sql-driver/mysql",
	"github.com/alexedwards/scs/sqlite3store", "github.com/alexedwards/scs/pgxstore",
	"github.com/alexedwards/scs/mysqlstore", "github.com/alexedwards/scs/goredisstore",
	"github.com/redis/go-redis/v9", "github.com/golang-jwt/jwt/v5",
}

// environment says where it was measured.
func environment() []string {
	cpu := "an unknown CPU"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	lines := []string{cpu + ", " + strconv.Itoa(runtime.NumCPU()) + " cores, " + runtime.GOOS + "/" + runtime.GOARCH + ", " + runtime.Version()}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		first, _, _ := strings.Cut(string(load), " ")
		lines[0] += ", load average before the run " + first
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		var modules []string
		for _, m := range info.Deps {
			if slices.Contains(told, m.Path) {
				modules = append(modules, m.Path+" "+m.Version)
			}
		}
		if len(modules) > 0 {
			lines = append(lines, "Modules: "+strings.Join(modules, ", "))
		}
	}
	return lines
}
