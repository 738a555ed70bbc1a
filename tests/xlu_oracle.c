/* SPDX-License-Identifier: GPL-3.0-or-later
 * SPDX-FileCopyrightText: The xendomains-wait-disk authors
 *
 * Oracle for test_xl_differential.py: parse configurations with Xen's own parser library.
 *
 * Reads configurations from standard input, each as its length (32 bits, little endian) followed by its bytes. For
 * each, it prints one line: "refused", or "accepted" with the name, followed by vdev, target and access (r or w) of each
 * disk, in hexadecimal, separated by blanks. It handles them like xl create (parse_config_data in xl_parse.c).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <libxlutil.h>

static void print_hex(const char *text)
{
    putchar(' ');
    putchar('=');
    for (; text && *text; text++)
        printf("%02x", (unsigned char)*text);
}

static int judge(const char *data, int length)
{
    FILE *report = fopen("/dev/null", "w");
    XLU_Config *config = xlu_cfg_init(report, "configuration");
    XLU_ConfigList *list = NULL;
    libxl_device_disk *disks = NULL;
    const char *name = NULL, *specification;
    int count = 0;

    if (xlu_cfg_readdata(config, data, length) || xlu_cfg_get_string(config, "name", &name, 0))
        return 1;
    if (!xlu_cfg_get_list(config, "disk", &list, NULL, 0)) {
        while ((specification = xlu_cfg_get_listitem(list, count))) {
            disks = realloc(disks, (count + 1) * sizeof(*disks));
            libxl_device_disk_init(&disks[count]);
            if (xlu_disk_parse(config, 1, &specification, &disks[count]))
                return 1;
            count++;
        }
    }
    printf("accepted");
    print_hex(name);
    for (int i = 0; i < count; i++) {
        print_hex(disks[i].vdev);
        print_hex(disks[i].pdev_path);
        print_hex(disks[i].readwrite ? "w" : "r");
    }
    putchar('\n');
    fflush(stdout);
    return 0;
}

int main(void)
{
    uint8_t head[4];

    while (fread(head, 1, 4, stdin) == 4) {
        uint32_t length = head[0] | head[1] << 8 | head[2] << 16 | (uint32_t)head[3] << 24;
        char *data = malloc(length + 1);
        int status;

        if (!data || fread(data, 1, length, stdin) != length)
            return 2;
        fflush(stdout);
        /* In a child, because the library aborts on some input. xl starts no domain in that case either. */
        pid_t child = fork();
        if (child == 0) {
            freopen("/dev/null", "w", stderr);
            _exit(judge(data, length));
        }
        if (child < 0 || waitpid(child, &status, 0) < 0)
            return 2;
        if (!WIFEXITED(status) || WEXITSTATUS(status)) {
            puts("refused");
            fflush(stdout);
        }
        free(data);
    }
    return 0;
}
