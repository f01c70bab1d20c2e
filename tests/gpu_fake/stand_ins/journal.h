// What happened on the device, a JSON object a line, in the file that GPU_JOURNAL names.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>

class Journal {
public:
    Journal() {
        if (const char *path = std::getenv("GPU_JOURNAL")) file_ = std::fopen(path, "a");
    }

    // `event` with more fields, which are printed like any format.
    void note(const char *event, const char *fields = "", ...) {
        if (!file_) return;
        std::fprintf(file_, "{\"event\": \"%s\"", event);
        va_list values;
        va_start(values, fields);
        std::vfprintf(file_, fields, values);
        va_end(values);
        std::fputs("}\n", file_);
        std::fflush(file_);  // a process may end in any way
    }

private:
    std::FILE *file_ = nullptr;
};
